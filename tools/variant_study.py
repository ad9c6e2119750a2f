"""What variant scores tell on real data: common against rare alleles, and effects measured by saturation mutagenesis.

    python tools/variant_study.py --model FOLDER --vcf SITES.vcf.gz --genome GENOME.fa.gz [--alleles 2000]
        [--neutral_sites 10000] [--window 251] [--mpra elements.tsv.gz] [--output study.tsv]

Alleles: single-base substitutions of the VCF, common (AF of at least 0.05) and rare (AC of 1, or AF below 0.001), as
many of each, evenly spread. AUROC is the probability that a common allele has the higher score (the lower of influence
and distance); 95 % intervals by a bootstrap over blocks of 10,000 bases. Beside the model: the same architecture with
random weights, and a Markov model (k bases on either side, both strands), counted in the genome without 50 bases around
each of these alleles, its k and smoothing chosen 20 bases off them; llr_calibrated: llr less its mean for the same
pentanucleotide and ALT over `--neutral_sites` bases of what the Markov model counts.
MPRA (Kircher et al. 2019; columns Chrom, Pos, Ref, Alt, Barcodes, Coefficient, Element, Release): Spearman's
correlation of |coefficient| with |llr|, influence and distance on the insert alone, which the Ref column spells; 95 %
intervals by a bootstrap over blocks of 10 bases.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata, spearmanr
from transformers import AutoTokenizer

from megadna.alphabet import BASES
from megadna.downstream.encoder import load_model
from megadna.downstream.variants import variants
from megadna.genome.records import Genome, read_genome
from megadna.genome.vcf import data_lines
from megadna.train.baselines import HiddenSamples, MarkovTable, fit

SCORES = {"llr": 1, "llr_calibrated": 1, "influence": -1, "l2": -1, "cosine": -1}
"""Columns, and the sign with which a common allele should have the higher value."""
BLOCK, REPLICATES, MARGIN, OFF = 10_000, 1000, 50, 20
MPRA_BLOCK = 10
ELEMENTS = ("LDLR", "F9", "TERT-HEK", "SORT1", "HBB")
LEAST_BARCODES = 10


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--vcf", type=Path, required=True)
    parser.add_argument("--genome", type=Path, required=True)
    parser.add_argument("--alleles", type=int, default=2000, help="of each class")
    parser.add_argument("--neutral_sites", type=int, default=10_000)
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument("--mpra", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    genome = read_genome(options.genome)
    chosen = select_alleles(options.vcf, options.alleles)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"model": options.model, "random weights": str(random_weights(options.model, folder / "random"))}
        markov = Markov(genome, chosen)
        kept = (f"{contig}\t{start}\t{end}\n" for contig, start, end in pieces(genome, chosen))
        (folder / "neutral.bed").write_text("".join(kept))
        neutral = {"neutral": folder / "neutral.bed", "neutral_sites": options.neutral_sites}
        table = frequencies(models, markov, chosen, options.genome, folder, window=options.window, **neutral)
        tables = [table]
        if options.mpra:
            tables.append(mutagenesis(models, markov, options.mpra, folder, window=options.window))
    result = pd.concat(tables, ignore_index=True)
    counts = [name for name in ("common", "rare", "substitutions") if name in result]
    result = result.astype(dict.fromkeys(counts, "Int64"))
    print(result.to_string(index=False, float_format="%.3f"))
    if options.output:
        result.to_csv(options.output, sep="\t", index=False)


def select_alleles(vcf: Path, count: int) -> pd.DataFrame:
    """contig, pos, ref, alt, common: `count` of each class, evenly spread over those of the file."""
    rows = []
    for line in data_lines(vcf):
        contig, pos, _, ref, alts, _, _, info = line.decode(errors="replace").split("\t", 8)[:8]
        entries = dict(entry.partition("=")[::2] for entry in info.split(";"))
        frequencies = entries.get("AF", "").split(",")
        counts = entries.get("AC", "").split(",")
        for alt, frequency, number in zip(alts.split(","), frequencies, counts, strict=False):
            if len(ref) == 1 and alt.upper() in BASES and frequency not in ("", "."):
                common, rare = float(frequency) >= 0.05, number == "1" or float(frequency) < 0.001
                if common or rare:
                    rows.append((contig, int(pos), ref, alt, common))
    table = pd.DataFrame(rows, columns=["contig", "pos", "ref", "alt", "common"])
    parts = [group.iloc[spread(len(group), count)] for _, group in table.groupby("common")]
    return pd.concat(parts).sort_index().reset_index(drop=True)


def spread(size: int, count: int) -> np.ndarray:
    """`count` numbers (or all) of 0 .. size - 1, evenly spread."""
    count = min(size, count)
    return (2 * np.arange(count) + 1) * size // (2 * count) if count else np.zeros(0, int)


def random_weights(model: str, folder: Path) -> Path:
    """The same architecture and tokenizer with fresh initial weights."""
    loaded = load_model(model, "AutoModelForMaskedLM", trust_remote_code=False)
    torch.manual_seed(1)
    type(loaded)(loaded.config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model, trust_remote_code=True).save_pretrained(folder)
    for path in Path(model).iterdir():
        if path.suffix in (".py", ".txt", ".json") and not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_bytes(Path(model, "config.json").read_bytes())
    return folder


class Markov:
    """Counts of a genome without what surrounds the alleles."""

    def __init__(self, genome: Genome, alleles: pd.DataFrame) -> None:
        self.table: MarkovTable = fit(
            (genome.bases[contig][start:end] for contig, start, end in pieces(genome, alleles)), both_strands=True
        )
        beside = [
            (genome.bases[contig], pos - 1 + OFF) for contig, pos in zip(alleles.contig, alleles.pos, strict=True)
        ]
        known = [(bases, at) for bases, at in beside if at < len(bases) and chr(bases[at]).upper() in BASES]
        self.k, self.smoothing = self.table.choose(self._samples(known))

    def _samples(self, sites: list[tuple[np.ndarray, int]]) -> HiddenSamples:
        reach = self.table.k

        def sample(bases: np.ndarray, at: int) -> tuple[np.ndarray, np.ndarray]:
            first = max(0, at - reach)
            seen = bases[first : at + reach + 1]
            return seen, np.arange(len(seen)) == at - first

        return HiddenSamples.stack(sample(*place) for place in sites)

    def llr(self, bases_N: list[np.ndarray], alleles: pd.DataFrame) -> np.ndarray:
        """ln p(alt) - ln p(ref) [N]; bases_N: uint8 of each allele's contig."""
        sites = list(zip(bases_N, (alleles.pos - 1).tolist(), strict=True))
        p_N4 = self.table.probabilities(self._samples(sites), self.smoothing)[self.k]
        ref_N, alt_N = ([BASES.index(base.upper()) for base in alleles[key]] for key in ("ref", "alt"))
        row_N = np.arange(len(alleles))
        return np.log(p_N4[row_N, alt_N]) - np.log(p_N4[row_N, ref_N])


def pieces(genome: Genome, alleles: pd.DataFrame) -> Iterator[tuple[str, int, int]]:
    """(contig, start, end), half-open, of what lies further than MARGIN bases from every allele."""
    for contig, bases in genome.bases.items():
        kept = np.ones(len(bases), bool)
        for pos in alleles.pos[alleles.contig == contig]:
            kept[max(0, pos - 1 - MARGIN) : pos + MARGIN] = False
        edges = np.flatnonzero(np.diff(np.concatenate([[0], kept.view(np.int8), [0]])))
        for start, end in edges.reshape(-1, 2).tolist():
            yield contig, start, end


def scored(model: str, alleles: pd.DataFrame, genome: Path, folder: Path, **options: Any) -> pd.DataFrame:
    """A row for each allele, in order."""
    path = folder / "alleles.vcf"
    rows = zip(alleles.contig, alleles.pos, alleles.ref, alleles.alt, strict=True)
    path.write_text("".join(f"{contig}\t{pos}\t.\t{ref}\t{alt}\n" for contig, pos, ref, alt in rows))
    found = variants(model, path, genome, scores=["llr", "influence", "distance"], **options)
    assert len(found) == len(alleles)
    return found


def frequencies(
    models: dict[str, str], markov: Markov, alleles: pd.DataFrame, path: Path, folder: Path, **options: Any
) -> pd.DataFrame:
    """AUROC of common against rare alleles by model and score."""
    genome = read_genome(path)
    bases_N = [genome.bases[contig] for contig in alleles.contig]
    values = {(f"markov, k = {markov.k}", "llr"): markov.llr(bases_N, alleles)}
    for name, model in models.items():
        found = scored(model, alleles, path, folder, **options)
        values |= {(name, score): sign * found[score].to_numpy() for score, sign in SCORES.items()}
    common_N = alleles.common.to_numpy()
    block_N = pd.factorize(alleles.contig + ":" + (alleles.pos // BLOCK).astype(str))[0]
    rows = []
    for (name, score), value_N in values.items():
        known_N = ~np.isnan(value_N)
        low, high = interval(auroc, value_N[known_N], common_N[known_N], block_N[known_N])
        counts = {"common": int(common_N[known_N].sum()), "rare": int((~common_N[known_N]).sum())}
        measure = {"measure": "AUROC", "value": auroc(value_N[known_N], common_N[known_N]), "low": low, "high": high}
        rows.append({"data": "common against rare", "model": name, "score": score, **measure, **counts})
    return pd.DataFrame(rows)


def auroc(value_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Probability that a positive has the higher value, a tie counting half (Mann and Whitney)."""
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(value_N)[positive_N].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def spearman(value_N: np.ndarray, other_N: np.ndarray) -> float:
    """Correlation of the ranks."""
    return float(spearmanr(value_N, other_N).statistic)


def interval(
    measure: Callable[[np.ndarray, np.ndarray], float], value_N: np.ndarray, truth_N: np.ndarray, block_N: np.ndarray
) -> tuple[float, float]:
    """2.5 and 97.5 % of a measure over resampled blocks."""
    rng = np.random.default_rng(20230420)
    members = [np.flatnonzero(block_N == block) for block in np.unique(block_N)]
    found = []
    for _ in range(REPLICATES):
        rows = np.concatenate([members[number] for number in rng.integers(len(members), size=len(members))])
        found.append(measure(value_N[rows], truth_N[rows]))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def mutagenesis(models: dict[str, str], markov: Markov, path: Path, folder: Path, **options: Any) -> pd.DataFrame:
    """Spearman's correlation of |effect| with the size of each score, by element."""
    table = pd.read_csv(path, sep="\t", dtype={"Chrom": str})
    table = table[(table.Release == "GRCh38") & table.Element.isin(ELEMENTS)].astype({"Pos": int})
    rows = []
    for element, group in table.groupby("Element"):
        insert, alleles = insert_of(str(element), group)
        fasta = folder / f"{element}.fa"
        fasta.write_text(f">{element}\n{insert}\n")
        bases_N = [np.frombuffer(insert.encode(), np.uint8)] * len(alleles)
        values = {(f"markov, k = {markov.k}", "llr"): markov.llr(bases_N, alleles)}
        for name, model in models.items():
            found = scored(model, alleles, fasta, folder, **options)
            values |= {(name, score): found[score].to_numpy() for score in SCORES if score in found}
        for (name, score), value_N in values.items():
            known_N = ~np.isnan(value_N)
            pair = np.abs(value_N[known_N]), alleles.effect.abs().to_numpy()[known_N]
            low, high = interval(spearman, *pair, alleles.pos.to_numpy()[known_N] // MPRA_BLOCK)
            data = {"data": f"MPRA {element}", "model": name, "score": score, "measure": "Spearman"}
            rows.append(
                {**data, "value": spearman(*pair), "low": low, "high": high, "substitutions": int(known_N.sum())}
            )
    return pd.DataFrame(rows)


def insert_of(element: str, group: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The reference that the Ref column spells, N where no row has a position; and the substitutions on it."""
    first, last = int(group.Pos.min()), int(group.Pos.max())
    bases = ["N"] * (last - first + 1)
    for pos, ref in zip(group.Pos, group.Ref, strict=True):
        bases[pos - first] = ref
    known = group.Alt.isin(list(BASES)) & group.Ref.isin(list(BASES)) & (group.Barcodes >= LEAST_BARCODES)
    group = group[known]
    columns = {"contig": element, "pos": group.Pos - first + 1, "ref": group.Ref, "alt": group.Alt}
    return "".join(bases), pd.DataFrame({**columns, "effect": group.Coefficient}).reset_index(drop=True)


if __name__ == "__main__":
    main()
