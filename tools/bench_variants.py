"""megadna variants against a plain transformers loop, side by side at equal scores: CPU seconds, on a GPU the wall's.

    OMP_NUM_THREADS=1 python tools/bench_variants.py [--sites 256] [--window 251] [--model FOLDER] [--output FILE.json]

The loop is what one writes with transformers alone: each variant and strand is a window with the site masked, windows
go through the tokenizer and the model in padded batches of 32, and log p(alt) - log p(ref) is read off the logits. Two
inputs: single-base substitutions of 1000 Genomes (one ALT a site but for a few), and saturation mutagenesis (three ALTs
a site). Without --model: random weights in the shape of configs/demo.yaml. Rounds are interleaved; the lowest time of
each counts. Prints the ratio, and what of it comes from sharing passes between ALTs.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from scipy.stats import spearmanr
from transformers import AutoModelForMaskedLM, AutoTokenizer

import megadna.hf
from megadna.downstream.encoder import pick_device
from megadna.downstream.masked_bases import MaskedBases
from megadna.downstream.variant_scores import Change, VariantScorer
from megadna.files import write_json
from megadna.genome.records import Genome, read_genome, reverse_complement
from megadna.genome.vcf import Allele, alt_reason, read_records, reference_reason, trimmed
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.hf.tokenizers import write_tokenizer
from megadna.tokenizer.base import NucleotideTokenizer, context_symbols

DATA = Path(__file__).parents[1] / "tests" / "data"
ROUNDS = 3
BATCH = 32


def main() -> None:
    """Print a line for each input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=256)
    parser.add_argument("--window", type=int, default=251)
    parser.add_argument("--model", default="")
    parser.add_argument("--output", type=Path, help="JSON file for the lines")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    genome = read_genome(DATA / "human_GRCh37_chr20_1000G.fa.gz")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.model or demo_model(Path(name), options.window + 2))
        scorer = VariantScorer(MaskedBases(folder), genome, options.window)
        loop = PlainLoop(folder, genome, options.window)
        half = VariantScorer(MaskedBases(folder, precision="bf16"), genome, options.window)
        lines = []
        for text, changes in (
            ("1000 Genomes", known_changes(genome, options.sites)),
            ("three ALTs a site", every_change(genome, options.sites)),
        ):
            lines.append(compare(text, scorer, loop, changes))
        lines.append(compare_bf16(scorer, half, changes))
    print("\n".join(lines))
    if options.output:
        write_json(options.output, {"line": "; ".join(lines), "lines": lines})


def clock() -> float:
    """Seconds: CPU time, or on a GPU of the wall once it has done all its work."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def demo_model(folder: Path, context: int) -> Path:
    """A Hugging Face folder with random weights in the shape of configs/demo.yaml."""
    torch.manual_seed(0)
    tokenizer = NucleotideTokenizer()
    config = MegaDnaConfig(
        vocab_size=16, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=352,
        max_position_embeddings=context, local_context="both", context_symbols=context_symbols(tokenizer),
    )  # fmt: skip
    model = MegaDnaForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for name in ("configuration_megadna.py", "modeling_megadna.py"):
        shutil.copy(Path(megadna.hf.__path__[0], name), folder)
    write_tokenizer(tokenizer, folder, context)
    return folder


class PlainLoop:
    """The tokenizer and the model of transformers."""

    def __init__(self, folder: Path, genome: Genome, window: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        self.device = pick_device()
        self.model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval().to(self.device)
        self.genome, self.half = genome, window // 2

    @torch.inference_mode()
    def __call__(self, changes: list[Change]) -> np.ndarray:
        """[N, 2]: forward and reverse strand."""
        jobs = []
        for contig, allele in changes:
            bases = self.genome.bases[contig]
            size = 2 * self.half + 1  # at an end of the contig the window is moved inwards, as in megadna
            start = min(max(0, allele.start - self.half), max(0, len(bases) - size))
            text = bases[start : start + size].tobytes().decode().upper()
            at, pair = allele.start - start, (allele.ref.decode(), allele.alt.decode())
            jobs.append((text, at, *pair))
            jobs.append((reverse_complement(text), len(text) - 1 - at, *map(reverse_complement, pair)))
        found = []
        for first in range(0, len(jobs), BATCH):
            batch = jobs[first : first + BATCH]
            encoded = self.tokenizer([text for text, *_ in batch], return_tensors="pt", padding=True).to(self.device)
            ids_BS = encoded["input_ids"]
            for row, (_, at, *_) in enumerate(batch):
                ids_BS[row, at + 1] = self.tokenizer.mask_token_id
            logits_BSV = self.model(input_ids=ids_BS, attention_mask=encoded["attention_mask"]).logits
            for row, (_, at, ref, alt) in enumerate(batch):
                log_p_V = logits_BSV[row, at + 1].log_softmax(0)
                of_ref, of_alt = (self.tokenizer.convert_tokens_to_ids(base) for base in (ref, alt))
                found.append(float(log_p_V[of_alt] - log_p_V[of_ref]))
        return np.array(found).reshape(-1, 2)


def known_changes(genome: Genome, count: int) -> list[Change]:
    """The first single-base substitutions of the 1000 Genomes slice."""
    found = []
    for record in read_records(DATA / "human_GRCh37_chr20_1000G.vcf.gz"):
        bases = genome.bases[record.contig]
        for alt in record.alts:
            if not reference_reason(record, bases) and not alt_reason(record, alt):
                allele = trimmed(record, alt, bases)
                found += [Change(record.contig, allele)] * (len(allele.ref) == len(allele.alt) == 1)
    return found[:count]


def every_change(genome: Genome, count: int) -> list[Change]:
    """The three substitutions of neighbouring bases."""
    found = []
    for at in range(10_000, 10_000 + count // 3):
        ref = genome.bases["z"][at : at + 1].tobytes().upper()
        found += [Change("z", Allele(at, ref, alt)) for alt in (b"A", b"C", b"G", b"T") if alt != ref]
    return found


def compare(text: str, scorer: VariantScorer, loop: PlainLoop, changes: list[Change]) -> str:
    """Scores' largest difference and seconds of both."""
    seconds: dict[str, list[float]] = {"megadna": [], "loop": []}
    found: dict[str, np.ndarray] = {}
    for _ in range(ROUNDS):
        for name, run in (("megadna", scorer.llr), ("loop", loop)):
            start = clock()
            found[name] = run(changes)
            seconds[name].append(clock() - start)
    difference = np.abs(found["megadna"] - found["loop"]).max()
    ours, theirs = (min(seconds[name]) for name in ("megadna", "loop"))
    sites = len({(contig, allele.start) for contig, allele in changes})
    return (
        f"{text}: {len(changes)} variants at {sites} sites, {ours:.2f} against {theirs:.2f} s, "
        f"{theirs / ours:.2f} times as fast ({len(changes) / sites:.2f} by sharing passes); "
        f"largest difference of a score {difference:.1e}"
    )


def compare_bf16(scorer: VariantScorer, half: VariantScorer, changes: list[Change]) -> str:
    """The time of bf16 as a share of that of fp32, and the rank correlation of the scores."""
    seconds, found = [], []
    for one in (scorer, half):
        start = clock()
        found.append(one.llr(changes).mean(axis=1))
        seconds.append(clock() - start)
    return f"bf16: {seconds[1] / seconds[0]:.2f} of fp32's time; Spearman's rho {spearmanr(*found).statistic:.5f}"


if __name__ == "__main__":
    main()
