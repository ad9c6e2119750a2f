"""What is checked of an attribution before torch is imported and a model loaded: the model's kind, label and target,
and that every sequence fits the context and has a base to explain.

In:  AttributeOptions; the JSON files of the model's folder (megadna/downstream/stated.py).
Out: bases to explain. UserError where something does not fit.
"""

from functools import partial
from typing import Any

from megadna.downstream.inputs import check_input, count_unknown, read_input
from megadna.downstream.interpretation_options import MAX_LOGO_BASES, AttributeOptions
from megadna.downstream.stated import head_of, is_language_model, most_bases, read_config, require_context
from megadna.errors import UserError, require
from megadna.genome.records import Stretch


def check_attribution(options: AttributeOptions) -> int | None:
    """As `check_input`; and the log counts the N, which have no importance."""
    config = read_config(options.model)
    _check_label(options, config)
    bases, total = check_input(options), 0
    most = most_bases(config, options.model, options.max_tokens)
    stretches = partial(read_input, options, circular=options.circular)
    for stretch in stretches():
        size, last = stretch.end - stretch.start, max(options.target, default=0)
        total += size
        require_context(where_of(stretch), len(stretch.bases), most, options.model)
        require(last < size, f"--target {last}: {where_of(stretch)} has {size} bases")
    require(
        total <= MAX_LOGO_BASES or not options.logo,
        f"--logo draws up to {MAX_LOGO_BASES:,} bases, and these are {total:,}; choose regions with --bed, or leave "
        "out --logo",
    )
    count_unknown(
        ((where_of(stretch), stretch.bases) for stretch in read_input(options, circular=options.circular)), "importance"
    )
    return bases


def _check_label(options: AttributeOptions, config: dict[str, Any]) -> None:
    """UserError unless --label and --target are for a model of this kind."""
    folder, label = options.model, options.label
    if is_language_model(config):
        require(not label, f"--label: {folder} is a masked language model; leave it out")
        return
    head = head_of(config, folder)
    known = ", ".join(head.names)
    if not label and len(head.names) > 1 and options.methods != ["attention"]:  # attention is of no output
        raise UserError(f"{folder}: predicts {known}; say which to explain with --label")
    require(not label or label in head.names, f"--label {label}: {folder} predicts {known}")
    require(head.per_base or not options.target, "--target: this model predicts whole sequences; leave it out")


def where_of(stretch: Stretch) -> str:
    """Record, start and end, for messages."""
    return f"{stretch.name}:{stretch.start}-{stretch.end}"
