"""`megadna variants`: a VCF and its genome -> scores of each ALT allele by a masked language model."""

import sys

from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.downstream.options import wrote
from megadna.downstream.variant_options import VariantOptions
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the scores."""
    parser = new_parser("variants", "Scores of the ALT alleles of a VCF by a masked language model.")
    add_options(parser, VariantOptions)
    options = options_from(parse(parser, arguments), VariantOptions)
    options.check_files()
    log.info("reading %s and %s, scoring with %s", options.vcf, options.genome, options.model)
    from megadna.downstream.variant_input import survey
    from megadna.genome.records import read_genome

    genome = read_genome(options.genome)
    found = survey(options.vcf, genome)
    with Progress("loading the libraries"):
        from megadna.downstream.variants import Variants

    Variants(options, genome, found).write()
    assert options.output is not None  # check_files has asked for it
    sys.stdout.write(wrote(options.output, "pos from 1, as in the VCF"))
