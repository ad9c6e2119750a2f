"""`megadna windows`: peaks, transcription start sites or bigWig values -> windows of one length with labels.

Peaks (BED: their middle; narrowPeak: the summit) and start sites are positives (label 1), beside as many negatives
(label 0). With a bigWig file the label is its mean over the window, at the peaks or start sites, or everywhere.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyBigWig

from megadna.downstream.annotation import of_biotypes, read_annotation, read_table
from megadna.downstream.contig_names import on_genome
from megadna.downstream.dataset_options import WindowOptions
from megadna.downstream.examples import cut, finish
from megadna.downstream.genome import Genome, read_genome
from megadna.downstream.negatives import matched_windows, shuffle_dinucleotides
from megadna.errors import UserError, require
from megadna.log import get_logger
from megadna.progress import Progress, tracked

log = get_logger(__name__)


def windows(**keys: Any) -> pd.DataFrame:
    """The dataset of these WindowOptions as one table: sequence, label, contig, start, end, strand, kind, name, split;
    the manifest in `attrs`. Also written where `output` names a folder."""
    options = WindowOptions(**keys)
    rng = np.random.default_rng(options.seed)
    genome = read_genome(options.genome)
    found = _everywhere if options.positives is None and options.annotation is None else _anchors
    taken = found(options, genome)
    minus = taken["strand"] == "-"
    before = np.where(minus, options.length - 1 - options.before, options.before)
    places = taken.assign(start=taken["anchor"] - before, reverse=minus)
    places = places.drop_duplicates(["contig", "start", "strand"], ignore_index=True)
    if 0 < options.count < len(places):
        places = places.sample(options.count, random_state=rng)
    examples, left_out = cut(places, genome, options.length)
    counts: dict[str, Any] = {"places": len(taken), "left out": left_out}
    require(len(examples) > 0, f"no window of {options.length} bases is left: {left_out}")
    if options.bigwig is not None:
        examples = _with_values(examples, options.bigwig, genome, options.aliases)
        require(len(examples) > 0, f"{options.bigwig}: holds no value in any window")
        counts["with a bigWig value"] = len(examples)
    else:
        intervals = pd.concat([taken, places.assign(end=places["start"] + options.length)])
        negatives = _negatives(examples, intervals, genome, options.negatives, rng)
        traits = {trait: negatives[trait].mean() for trait in ("gc", "repeats") if trait in negatives}
        counts |= {"negatives": len(negatives), "mean difference to the matched positive": traits}
        examples = pd.concat([examples.assign(label=1), negatives.assign(label=0)], ignore_index=True)
    return finish(examples, options, options.split, ["name"], counts)


def _anchors(options: WindowOptions, genome: Genome) -> pd.DataFrame:
    """contig, start, end, strand, anchor (the base that a window is laid around), kind and name of each positive."""
    if options.annotation is not None:
        with Progress(f"reading {options.annotation}"):
            found = of_biotypes(read_annotation(options.annotation)[0], options.biotypes, options.annotation)
        found = on_genome(found, genome, options.annotation, options.aliases)
        anchor = found["start"].where(found["strand"] == "+", found["end"] - 1)
        # start and end: only the site itself is taken, so that the gene's body may hold negatives
        return found.assign(anchor=anchor, start=anchor, end=anchor + 1, kind="tss", name=found["gene"])
    assert options.positives is not None
    summits = ".narrowPeak" in options.positives.name
    columns = ["chrom", "start", "end", "strand", *(["relSummit"] if summits else [])]
    found = read_table(options.positives, "narrowPeak" if summits else "bed", columns)
    found = on_genome(found.rename(columns={"chrom": "contig"}), genome, options.positives, options.aliases)
    anchor = (found["start"] + found["end"] - (found["strand"] == "-")) // 2
    if summits:  # -1: the caller of the peaks gave none
        summit = pd.to_numeric(found["relSummit"], errors="coerce").fillna(-1).astype(np.int64)
        anchor = anchor.where(summit < 0, found["start"] + summit)
    name = found["contig"] + ":" + found["start"].astype(str) + "-" + found["end"].astype(str)
    strand = found["strand"].where(found["strand"] == "-", "+")
    return found.assign(anchor=anchor, strand=strand, kind="peak", name=name)


def _everywhere(options: WindowOptions, genome: Genome) -> pd.DataFrame:
    """Windows side by side over every contig, as `_anchors` gives them."""
    starts = {name: range(0, size - options.length + 1, options.length) for name, size in genome.lengths.items()}
    found = pd.DataFrame([(name, start) for name in starts for start in starts[name]], columns=["contig", "start"])
    return found.assign(strand="+", anchor=found["start"] + options.before, kind="signal", name="")


def _with_values(examples: pd.DataFrame, path: Path, genome: Genome, aliases: Path | None) -> pd.DataFrame:
    """The windows with the mean of the bigWig's values there as label; those without any value go."""
    require(path.is_file(), f"{path}: no such bigWig file")
    try:
        signal = pyBigWig.open(str(path))
        chromosomes = signal.chroms()
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{path}: not a bigWig file") from error
    sizes = pd.DataFrame({"contig": chromosomes.keys(), "theirs": chromosomes.keys(), "end": chromosomes.values()})
    sizes = on_genome(sizes.assign(start=0), genome, path, aliases, min_share=0)
    theirs = dict(zip(sizes["contig"], sizes["theirs"], strict=True))
    known = examples[examples["contig"].isin(theirs.keys())]
    places = zip(known["contig"].map(theirs), known["start"].tolist(), known["end"].tolist(), strict=True)
    each = tracked(places, f"reading {path}", len(known), "windows")
    values = [signal.stats(*place, type="mean", exact=True)[0] for place in each]
    return known.assign(label=pd.Series(values, index=known.index, dtype=float)).dropna(subset="label")


def _negatives(
    positives: pd.DataFrame, taken: pd.DataFrame, genome: Genome, kind: str, rng: np.random.Generator
) -> pd.DataFrame:
    """One for each positive, where there is one."""
    if kind == "none":
        return positives[:0]
    if kind == "shuffled":
        each = tracked(positives["sequence"], "shuffling", len(positives), "windows")
        shuffled = [shuffle_dinucleotides(sequence, rng) for sequence in each]
        return positives.assign(sequence=shuffled, kind=kind)
    with Progress("matching negatives"):
        matched = matched_windows(positives, taken, genome, rng)
    if len(matched) < len(positives):
        log.warning(
            "%d of %d positives: no negative is left on their contig", len(positives) - len(matched), len(positives)
        )
    return cut(matched, genome, len(positives["sequence"].iloc[0]))[0].assign(kind=kind)
