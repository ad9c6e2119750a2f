"""Hide some bases of a real sequence and let an exported model guess them. Needs only numpy, torch and transformers.

    python tools/fill_mask.py HF_FOLDER --input genome.fa.gz
    python tools/fill_mask.py HF_FOLDER --sequence ACGTTGCA... --masks 5

In:  a Hugging Face folder of a one-token-a-base masked language model, and a FASTA file (plain or gzip) or a sequence.
Out: of the first window the hidden bases marked and p(A), p(C), p(G), p(T) of each; of all windows the share guessed
     right, which by chance is about 0.25, and bits per base, both with their standard error.
The windows come from the whole file, most of it seen in training if the model was trained on it; for held-out regions
use `megadna evaluate --split test`.
A fixed --seed picks the windows (A, C, G, T only) and the hidden positions; in each, all are hidden at once by [MASK].
A window longer than the model's training sequences gives a warning. Python files of the folder run only if they are
those of megadna/ next to this script, or with --trust_remote_code.
"""

import argparse
import gzip
import math
import random
import re
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone is enough, installed or not

from megadna.downstream.encoder import load_model, load_tokenizer
from megadna.errors import UserError

BASES = "ACGT"
LINE = 60


def read_fasta(path: Path) -> dict[str, str]:
    """Sequences by name, upper-cased."""
    opener = gzip.open if path.suffix == ".gz" else open
    records: dict[str, list[str]] = {}
    with opener(path, "rt") as lines:
        for line in lines:
            if line.startswith(">"):
                current = records.setdefault(line[1:].split(maxsplit=1)[0], [])
            elif line.strip():
                if not records:
                    sys.exit(f"{path}: the first line is no FASTA header (>name)")
                current.append(line.strip().upper())
    return {name: "".join(parts) for name, parts in records.items()}


def pick_window(records: dict[str, str], length: int, rng: random.Random) -> tuple[str, str]:
    """Coordinates of a window and its bases, from records drawn by length; only windows of A, C, G and T count."""
    fits = {name: sequence for name, sequence in records.items() if len(sequence) >= length}
    if not fits:
        sys.exit(f"no sequence has {length} bases; give a smaller --length")
    for _ in range(1000):
        name = rng.choices(list(fits), weights=[len(sequence) for sequence in fits.values()])[0]
        start = rng.randrange(len(fits[name]) - length + 1)
        window = fits[name][start : start + length]
        if re.fullmatch("[ACGT]+", window):
            return f"{name}:{start + 1}-{start + length}", window
    sys.exit(f"found no stretch of {length} bases A, C, G, T; give a smaller --length")


class Model:
    """An exported model and its tokenizer."""

    def __init__(self, folder: str, *, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code).tokenizer
        self.model = load_model(folder, "AutoModelForMaskedLM", trust_remote_code=trust_remote_code)

    def check_length(self, length: int) -> None:
        """Warn if a window of `length` bases is longer than the training sequences."""
        context = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        specials = self.tokenizer.num_special_tokens_to_add()
        if length + specials > context:
            sys.stderr.write(
                f"warning: {length} bases are longer than what the model was trained on ({context - specials} bases): "
                "it may guess worse than it can; give a shorter one\n"
            )

    def base_probabilities(self, window: str, positions: list[int]) -> torch.Tensor:
        """[positions, 4] probabilities of A, C, G, T, all positions hidden at once, renormalised over the four."""
        tokenizer = self.tokenizer
        ids = tokenizer(window, return_tensors="pt", verbose=False)["input_ids"]
        first = int(ids[0, 0] == tokenizer.cls_token_id)  # position of the first base
        if ids.shape[1] - len(window) not in (0, 1, 2):
            sys.exit(f"{self.folder} does not have one token a base: {len(window)} bases gave {ids.shape[1]} tokens")
        ids[0, [first + position for position in positions]] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = self.model(ids).logits[0, [first + position for position in positions]].float()
        return logits[:, tokenizer.convert_tokens_to_ids(list(BASES))].softmax(-1)


def marked(window: str, positions: list[int]) -> str:
    """The window in lines of 60, hidden bases in lower case with a caret below."""
    hidden = set(positions)
    text = "".join(base.lower() if i in hidden else base for i, base in enumerate(window))
    carets = "".join("^" if i in hidden else " " for i in range(len(window)))
    lines = []
    for start in range(0, len(window), LINE):
        lines += [
            f"{start + 1:>6}  {text[start : start + LINE]}",
            f"{'':>6}  {carets[start : start + LINE]}".rstrip(),
        ]
    return "\n".join(lines)


def table(window: str, positions: list[int], probabilities: torch.Tensor) -> str:
    """One line per hidden base."""
    lines = ["position  true   p(A)   p(C)   p(G)   p(T)  guess"]
    for position, shares in zip(positions, probabilities.tolist(), strict=True):
        true, guess = window[position], BASES[shares.index(max(shares))]
        columns = "  ".join(f"{share:.3f}" for share in shares)
        lines.append(f"{position + 1:>8}  {true:>4}  {columns}  {guess:>5}{'  right' if guess == true else ''}")
    return "\n".join(lines)


def score(window: str, positions: list[int], probabilities: torch.Tensor) -> list[tuple[float, float]]:
    """(1 if the likeliest base is the true one, bits) of each hidden base."""
    true = [BASES.index(window[position]) for position in positions]
    pairs = zip(true, probabilities.tolist(), strict=True)
    return [(float(shares[base] == max(shares)), -math.log2(shares[base])) for base, shares in pairs]


def total(scores: list[tuple[float, float]], num_windows: int) -> str:
    """One line over all hidden bases; standard errors treat them as independent."""
    right, bits = zip(*scores, strict=True)
    count = len(scores)
    errors = [statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan for values in (right, bits)]
    where = "" if num_windows == 1 else f" in {num_windows} windows"
    return (
        f"{sum(right):.0f} of {count} right{where} ({sum(right) / count:.1%}, standard error {errors[0]:.1%}; chance "
        f"25%), {sum(bits) / count:.3f} bits a base (standard error {errors[1]:.3f}; chance 2)"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="Hugging Face folder, as `megadna export` writes it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, help="FASTA file, plain or gzip")
    source.add_argument("--sequence", help="bases to use as they are")
    parser.add_argument("--windows", type=int, default=20, help="windows taken from --input; the first is shown")
    parser.add_argument("--length", type=int, default=480, help="bases of each")
    parser.add_argument("--masks", type=int, default=24, help="bases to hide in each")
    parser.add_argument("--seed", type=int, default=0, help="draws the windows and the positions")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python files that are not megadna's")
    return parser.parse_args()


def main() -> None:
    """Read, hide, guess, print."""
    arguments = parse_arguments()
    rng = random.Random(arguments.seed)
    if not (Path(arguments.folder) / "config.json").is_file():
        sys.exit(f"{arguments.folder} is no Hugging Face folder: it has no config.json")
    if arguments.sequence:
        windows = [("the given sequence", arguments.sequence.upper())]
    elif arguments.input.is_file():
        records = read_fasta(arguments.input)
        windows = [pick_window(records, arguments.length, rng) for _ in range(max(1, arguments.windows))]
    else:
        sys.exit(f"{arguments.input} is not a file; give a FASTA file to --input")
    num_candidates = sum(base in BASES for base in windows[0][1])
    if not 0 < arguments.masks <= num_candidates:
        sys.exit(f"--masks must lie in 1..{num_candidates} (the bases A, C, G, T of the window), got {arguments.masks}")
    try:
        model = Model(arguments.folder, trust_remote_code=arguments.trust_remote_code)
    except UserError as error:
        sys.exit(str(error))
    model.check_length(len(windows[0][1]))
    scores = []
    for number, (coordinates, window) in enumerate(windows):
        positions = sorted(rng.sample([i for i, base in enumerate(window) if base in BASES], arguments.masks))
        probabilities = model.base_probabilities(window, positions)
        if number == 0:
            print(f"{coordinates}, hidden bases in lower case:\n\n{marked(window, positions)}\n")
            print(table(window, positions, probabilities))
        scores += score(window, positions, probabilities)
    seen = "" if arguments.sequence else "; from the whole file, so mostly seen if the model was trained on it"
    print(f"\n{total(scores, len(windows))}{seen}")


if __name__ == "__main__":
    main()
