"""The verbs that use or fine-tune a finished model or make labelled data for one, a line of VERBS each.

Options, files and input are checked first; torch and the like are imported after that. What a verb returns is printed.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from megadna.arguments import parsed_options
from megadna.downstream.dataset_options import SpliceOptions, WindowOptions
from megadna.downstream.generate_options import GenerateOptions
from megadna.downstream.interpretation_options import (
    AnnotateOptions,
    AttributeOptions,
    DependencyOptions,
    MotifOptions,
    MutateOptions,
    SearchOptions,
    VariantOptions,
)
from megadna.downstream.options import BenchmarkOptions, EmbedOptions, FinetuneOptions, PredictOptions, wrote
from megadna.log import counted, get_logger
from megadna.progress import Progress

log = get_logger(__name__)


class Verb(NamedTuple):
    """One command."""

    options: type
    reading: str
    """What the log says first, with options in braces."""
    run: Callable[[Any], str]
    """Does the work and returns what to print."""
    config: str = ""
    """Help of --config, where a YAML file may have the options."""


def main(verb: str, description: str, arguments: list[str]) -> None:
    """Run one of VERBS."""
    command = VERBS[verb]
    options: Any = parsed_options(verb, description, command.options, arguments, config=command.config)
    options.check_files()
    values = vars(options).items()
    shown = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in values}
    log.info("%s", command.reading.format_map(shown))
    sys.stdout.write(command.run(options))


def _wrote(paths: Iterable[Path]) -> str:
    return "".join(map(wrote, paths))


def _annotate(options: AnnotateOptions) -> str:
    from megadna.downstream.inputs import check_windows

    found = check_windows(options)
    features = None
    if options.annotation is not None:
        from megadna.downstream.enrichment import read_track

        with Progress(f"reading {options.annotation}"):
            features = read_track(options.annotation, found.lengths)
    with Progress("loading the libraries"):
        from megadna.downstream.annotate import Annotator

    return _wrote(Annotator(options, features).write(found.bases))


def _attribute(options: AttributeOptions) -> str:
    from megadna.downstream.stated import check_attribution

    bases = check_attribution(options)
    with Progress("loading the libraries"):
        from megadna.downstream.attribute import Attributor

    return _wrote(Attributor(options).write(bases))


def _benchmark(options: BenchmarkOptions) -> str:
    with Progress("loading the libraries"):
        from megadna.downstream.benchmark import benchmark, markdown

    return markdown(benchmark(**vars(options))) + f"written to {options.output}/results.md and results.csv\n"


def _dependencies(options: DependencyOptions) -> str:
    from megadna.downstream.dependencies import Dependencies
    from megadna.downstream.inputs import check_input

    bases = check_input(options)
    work = Dependencies(options)
    files = _wrote(work.write(bases))
    if work.found is None:
        return files
    runs = work.found.to_string(index=False, float_format="%.3g") if len(work.found) else "no stem or repeat found"
    return f"{runs}\n{files}"


def _embed(options: EmbedOptions) -> str:
    from megadna.downstream.inputs import check_input

    bases = check_input(options)
    with Progress("loading the libraries"):
        from megadna.downstream.embed import Embedder

    return _wrote(Embedder(options).write(bases))


def _finetune(options: FinetuneOptions) -> str:
    with Progress("loading the libraries"):
        from rich.console import Console
        from rich.table import Table

        from megadna.downstream.finetune import finetune

    scores = finetune(**vars(options))
    if scores.empty:  # above rank 0
        return ""
    table = Table("split", "score", "mean", "low", "high", title=f"{options.output}: {scores.seed.nunique()} seeds")
    for (split, score), rows in scores.groupby(["split", "score"], sort=False):
        means = (rows[key].mean(skipna=False) for key in ("value", "low", "high"))
        table.add_row(split, score, *(f"{mean:.4f}" for mean in means))
    Console(markup=False).print(table)  # names of test sets may contain brackets
    return "".join(f"{line}\n" for line in _remarks(scores))


def _remarks(scores: Any) -> list[str]:
    """One line per remark on a split of a table of scores, with its runs unless it applies to all."""
    runs = scores[["seed", "fold", "split", "remark"]].drop_duplicates()
    lines = []
    for (split, remark), rows in runs[runs["remark"] != ""].groupby(["split", "remark"], sort=False):
        some = len(rows) < int((runs["split"] == split).sum())
        of_runs = "; ".join(f"{seed}, {fold}" for seed, fold in zip(rows["seed"], rows["fold"], strict=True))
        lines.append(f"{split}{f' (seed, fold: {of_runs})' if some else ''}: {remark}")
    return lines


def _generate(options: GenerateOptions) -> str:
    from megadna.downstream.generate_rules import templates

    templates(options)
    with Progress("loading the libraries"):
        from megadna.downstream.generate import generate

    table = generate(**vars(options))
    log.info("run a screening tool (docs/generation.md) before any of them is synthesised")
    return f"wrote {len(table)} sequences: {options.output}\n"


def _motifs(options: MotifOptions) -> str:
    with Progress("loading the libraries"):
        from megadna.downstream.motifs import motifs_with

    table = motifs_with(options)
    return f"{table.to_string(index=False) if len(table) else 'no motif'}\nwrote {options.output}\n"


def _mutate(options: MutateOptions) -> str:
    from megadna.downstream.inputs import check_input
    from megadna.downstream.mutate import Mutagenesis

    bases = check_input(options)
    return _wrote(Mutagenesis(options).write(bases))


def _predict(options: PredictOptions) -> str:
    from megadna.downstream.inputs import check_input

    bases = check_input(options)
    with Progress("loading the libraries"):
        from megadna.downstream.predict import Predictor

    return _wrote(Predictor(options).write(bases))


def _search(options: SearchOptions) -> str:
    from megadna.downstream.inputs import queries_of, survey

    queries, window, step = queries_of(options)
    found = survey(options, window, step)
    both = counted(len(queries), "query", "queries"), counted(found.windows, "window")
    log.info("%s against %s of %d bases, %d apart", *both, window, step)
    with Progress("loading the libraries"):
        from megadna.downstream.search import Searcher

    return _wrote(Searcher(options, queries, window, step).write(found.bases))


def _splice_sites(options: SpliceOptions) -> str:
    with Progress("loading the libraries"):
        from megadna.downstream.splice_sites import splice_sites

    splice_sites(**vars(options))
    return ""


def _variants(options: VariantOptions) -> str:
    from megadna.downstream.variants import Variants

    work = Variants(options)
    files = work.write(work.survey.num_records + len(work.neutral))
    return "".join(wrote(path, "pos from 1, as in the VCF") for path in files[:1])


def _windows(options: WindowOptions) -> str:
    with Progress("loading the libraries"):
        from megadna.downstream.windows import windows

    windows(**vars(options))
    return ""


VERBS = {
    "embed": Verb(EmbedOptions, "reading {input}, embedding with {model}", _embed),
    "finetune": Verb(FinetuneOptions, "reading {data}", _finetune, "YAML file of options (configs/finetune/)"),
    "generate": Verb(GenerateOptions, "writing sequences by {method} with {model}", _generate),
    "predict": Verb(PredictOptions, "reading {input}, predicting with {model}", _predict),
    "variants": Verb(VariantOptions, "reading {vcf} and {genome}, scoring with {model}", _variants),
    "annotate": Verb(AnnotateOptions, "reading {genome}, embedding with {model}", _annotate),
    "search": Verb(SearchOptions, "reading {input} and {genome}, embedding with {model}", _search),
    "mutate": Verb(MutateOptions, "reading {input}, mutating it with {model}", _mutate),
    "dependencies": Verb(DependencyOptions, "reading {input}, mapping it with {model}", _dependencies),
    "attribute": Verb(AttributeOptions, "reading {input}, explaining {model} by {methods}", _attribute),
    "motifs": Verb(MotifOptions, "reading {input} and {negatives}", _motifs),
    "benchmark": Verb(BenchmarkOptions, "suite {suite}: reading {data}", _benchmark),
    "splice-sites": Verb(SpliceOptions, "reading {annotation} and {genome}", _splice_sites),
    "windows": Verb(WindowOptions, "reading {genome}", _windows),
}
