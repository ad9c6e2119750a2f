"""`megadna embed` beside a plain transformers loop by batches of 32: seconds of whole commands, and equal vectors.

    OMP_NUM_THREADS=1 python tools/bench_embed.py [--sequences 4000] [--rounds 3] [--local_context both]
    python tools/bench_embed.py --model FOLDER --longest 3998 --precision bf16 [--output FILE.json]

A model of the demo's shape (configs/demo.yaml) with random weights, or the one of --model, embeds random sequences of a
fifth of --longest bases to --longest: the mean over the tokens of bases. Each round runs both commands, and both with
one sequence: the work without start-up is the difference. CPU seconds, or those of the wall where there is a GPU, which
both use. Prints one Markdown table of medians over the rounds.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
LONGEST, CONTEXT, BATCH = 248, 252, 32
LIMITS = {False: 1e-5, True: 1e-3}
"""Largest difference of a component in fp32, without and with a GPU."""


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


def plain_loop(folder: str, fasta: str, output: str, precision: str) -> None:
    """What the user of transformers writes: batches in the file's order, padded, mean without special tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    model.to(device=device, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    sequences = [line.strip() for line in Path(fasta).read_text().splitlines() if not line.startswith(">")]
    vectors = []
    for start in range(0, len(sequences), BATCH):
        batch = tokenizer(
            sequences[start : start + BATCH], padding=True, return_tensors="pt", return_special_tokens_mask=True
        ).to(device)
        weights_BS1 = 1 - batch.pop("special_tokens_mask").unsqueeze(-1)
        with torch.inference_mode():
            hidden_BSH = model(**{key: batch[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
        vectors.append(((hidden_BSH.float() * weights_BS1).sum(1) / weights_BS1.sum(1)).cpu().numpy())
    np.save(output, np.concatenate(vectors))


def seconds_of(command: list[str], *, on_gpu: bool) -> float:
    """Of the wall, or user and system time of a command, its threads included."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start if on_gpu else cpu


def commands(model: str, precision: str) -> dict[str, Callable[[Path, Path], list[str]]]:
    """The command line of each side, from FASTA and output."""

    def ours(fasta: Path, output: Path) -> list[str]:
        output.unlink(missing_ok=True)
        output.with_name(f"{output.name}.index.tsv").unlink(missing_ok=True)
        files = ["--input", str(fasta), "--output", str(output), "--precision", precision]
        return [sys.executable, "-m", "megadna", "embed", "--model", model, *files]

    def plain(fasta: Path, output: Path) -> list[str]:
        return [sys.executable, __file__, "--plain", model, str(fasta), str(output), precision]

    return {"plain loop": plain, "megadna embed": ours}


def main() -> None:
    """Print the table; exit 1 if the vectors differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local_context", default="both", choices=("none", "convolution", "kmer", "both"))
    parser.add_argument("--model", default="")
    parser.add_argument("--longest", type=int, default=LONGEST)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    parser.add_argument("--plain", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_loop(*options.plain)
        return
    import torch

    on_gpu = torch.cuda.is_available()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or str(folder / "model")
        if not options.model:
            write_model(folder / "model", options.local_context)
        seconds = time_rounds(folder, commands(model, options.precision), options, on_gpu=on_gpu)
        found = report(seconds, "s" if on_gpu else "CPU s")
        ours, plain = (np.load(folder / f"{side}_many.npy") for side in ("megadna", "plain"))
    furthest = float(np.abs(ours - plain).max())
    print(f"\nlargest difference of a component: {furthest:.1e}")
    if options.output:
        line = (
            f"embed, {options.precision}: {found['without_start']:.2f} times as fast as a plain loop without start-up"
        )
        found |= {"line": f"{line}, {found['whole']:.2f} times in all; largest difference {furthest:.1e}"}
        options.output.write_text(json.dumps(found | {"largest_difference": furthest}, indent=2) + "\n")
    sys.exit(options.precision == "fp32" and furthest > LIMITS[on_gpu])


def time_rounds(
    folder: Path, sides: dict[str, Callable[[Path, Path], list[str]]], options: argparse.Namespace, *, on_gpu: bool
) -> dict[tuple[str, str], list[float]]:
    """Seconds of each side and input, one after the other in every round."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(options.longest // 5 + 1, options.longest + 1, options.sequences)
    texts = ["".join(rng.choice(list("ACGT"), size)) for size in sizes]
    many, one = folder / "many.fa", folder / "one.fa"
    many.write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(texts)))
    one.write_text(f">s\n{texts[0]}\n")
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for side, command in sides.items():
            for fasta in (one, many):
                taken = seconds_of(command(fasta, folder / f"{side.split()[0]}_{fasta.stem}.npy"), on_gpu=on_gpu)
                seconds.setdefault((side, fasta.stem), []).append(taken)
    return seconds


def report(seconds: dict[tuple[str, str], list[float]], unit: str) -> dict[str, Any]:
    """Print medians of seconds, and ratios of the plain loop to each side within rounds; those of megadna."""
    print(
        f"| side | {unit} | of which start-up | loop/side, whole | loop/side, without start-up |\n|---|---|---|---|---|"
    )
    plain = np.array(seconds["plain loop", "many"]), np.array(seconds["plain loop", "one"])
    cells: list[float] = []
    for side in dict.fromkeys(side for side, _ in seconds):
        many, one = np.array(seconds[side, "many"]), np.array(seconds[side, "one"])
        whole, work = plain[0] / many, (plain[0] - plain[1]) / (many - one)
        cells = [statistics.median(values.tolist()) for values in (many, one, whole, work)]
        print(f"| {side} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return dict(zip(("seconds", "start_seconds", "whole", "without_start"), cells, strict=True))


if __name__ == "__main__":
    main()
