"""`megadna embed` beside a plain transformers loop by batches of 32: CPU seconds of whole commands, and equal vectors.

    OMP_NUM_THREADS=1 python tools/bench_embed.py [--sequences 4000] [--rounds 3] [--local_context both]

A model of the demo's shape (configs/demo.yaml) with random weights embeds random sequences of 50 to 248 bases: the mean
over the tokens of bases. Each round runs both commands, and both with one sequence: the work without start-up is the
difference. Prints one Markdown table of medians over the rounds.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SHORTEST, LONGEST, CONTEXT, BATCH = 50, 248, 252, 32


def write_model(folder: Path, local_context: str) -> None:
    """A folder as `megadna export` writes it, with random weights."""
    import torch

    from megadna.hf.configuration_megadna import MegaDnaConfig
    from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
    from megadna.hf.tokenizers import write_tokenizer
    from megadna.tokenizer.base import NucleotideTokenizer

    torch.manual_seed(1)
    tokenizer = NucleotideTokenizer()
    symbols = [5] * tokenizer.vocab_size
    for number, token in enumerate(tokenizer.tokens()):
        symbols[number] = "ACGT".index(token) if token in ("A", "C", "G", "T") else 4 if token in ("N", "[MASK]") else 5
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 352}
    config = MegaDnaConfig(
        vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT, local_context=local_context,
        context_symbols=symbols if local_context in ("kmer", "both") else None, **sizes,
    )  # fmt: skip
    MegaDnaForMaskedLM(config).save_pretrained(folder)
    for name in ("configuration_megadna", "modeling_megadna"):
        shutil.copy(ROOT / "megadna" / "hf" / f"{name}.py", folder)
    content = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "configuration_megadna.MegaDnaConfig", "AutoModel": "modeling_megadna.MegaDnaModel"}
    (folder / "config.json").write_text(json.dumps(content | {"auto_map": names}))
    write_tokenizer(tokenizer, folder, CONTEXT)


def plain_loop(folder: str, fasta: str, output: str) -> None:
    """What the user of transformers writes: batches in the file's order, padded, mean without special tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    sequences = [line.strip() for line in Path(fasta).read_text().splitlines() if not line.startswith(">")]
    vectors = []
    for start in range(0, len(sequences), BATCH):
        batch = tokenizer(
            sequences[start : start + BATCH], padding=True, return_tensors="pt", return_special_tokens_mask=True
        )
        weights_BS1 = 1 - batch.pop("special_tokens_mask").unsqueeze(-1)
        with torch.inference_mode():
            hidden_BSH = model(**{key: batch[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
        vectors.append(((hidden_BSH * weights_BS1).sum(1) / weights_BS1.sum(1)).numpy())
    np.save(output, np.concatenate(vectors))


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command, its threads included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(folder: Path) -> dict[str, Callable[[Path, Path], list[str]]]:
    """The command line of each side, from FASTA and output."""
    model = str(folder / "model")

    def ours(fasta: Path, output: Path) -> list[str]:
        output.unlink(missing_ok=True)
        output.with_name(f"{output.name}.index.tsv").unlink(missing_ok=True)
        files = ["--input", str(fasta), "--output", str(output)]
        return [sys.executable, "-m", "megadna", "embed", "--model", model, *files]

    def plain(fasta: Path, output: Path) -> list[str]:
        return [sys.executable, __file__, "--plain", model, str(fasta), str(output)]

    return {"plain loop": plain, "megadna embed": ours}


def main() -> None:
    """Print the table; exit 1 if the vectors differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local_context", default="both", choices=("none", "convolution", "kmer", "both"))
    parser.add_argument("--plain", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_loop(*options.plain)
        return
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", options.local_context)
        sizes = rng.integers(SHORTEST, LONGEST + 1, options.sequences)
        texts = ["".join(rng.choice(list("ACGT"), size)) for size in sizes]
        many, one = folder / "many.fa", folder / "one.fa"
        many.write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(texts)))
        one.write_text(f">s\n{texts[0]}\n")
        sides = commands(folder)
        seconds: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for side, command in sides.items():
                for fasta in (one, many):
                    taken = cpu_seconds(command(fasta, folder / f"{side.split()[0]}_{fasta.stem}.npy"))
                    seconds.setdefault((side, fasta.stem), []).append(taken)
        report(seconds)
        vectors = [np.load(folder / f"{side.split()[0]}_many.npy") for side in sides]
        furthest = float(np.abs(vectors[0] - vectors[1]).max())
        print(f"\nlargest difference of a component: {furthest:.1e}")
        sys.exit(furthest > 1e-5)


def report(seconds: dict[tuple[str, str], list[float]]) -> None:
    """Medians of CPU seconds, and ratios of the plain loop to each side within rounds."""
    print(
        "| side | CPU s | of which start-up | loop/side, whole | loop/side, without start-up |\n|---|---|---|---|---|"
    )
    plain = np.array(seconds["plain loop", "many"]), np.array(seconds["plain loop", "one"])
    for side in dict.fromkeys(side for side, _ in seconds):
        many, one = np.array(seconds[side, "many"]), np.array(seconds[side, "one"])
        whole, work = plain[0] / many, (plain[0] - plain[1]) / (many - one)
        cells = [statistics.median(values.tolist()) for values in (many, one, whole, work)]
        print(f"| {side} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
