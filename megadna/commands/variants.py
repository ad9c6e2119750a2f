"""`megadna variants`: a VCF and its genome -> scores of each ALT allele by a masked language model."""

import sys

from megadna.arguments import checked_options
from megadna.downstream.options import wrote
from megadna.downstream.variant_options import VariantOptions
from megadna.log import get_logger

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the scores."""
    description = "Scores of the ALT alleles of a VCF by a masked language model."
    options = checked_options("variants", description, VariantOptions, arguments)
    log.info("reading %s and %s, scoring with %s", options.vcf, options.genome, options.model)
    from megadna.downstream.variant_input import survey
    from megadna.downstream.variants import Variants
    from megadna.genome.records import read_genome

    genome = read_genome(options.genome)
    found = survey(options.vcf, genome)
    Variants(options, genome, found).write()
    assert options.output is not None  # check_files has asked for it
    sys.stdout.write(wrote(options.output, "pos from 1, as in the VCF"))
