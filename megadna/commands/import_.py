"""`megadna import`: a Hugging Face folder becomes a checkpoint to go on training from."""

from pathlib import Path

from megadna.arguments import new_parser, parse
from megadna.errors import require
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the checkpoint; refuse it where the megatron model does not compute what the folder's model computes."""
    parser = new_parser("import", "Hugging Face folder -> checkpoint of weights only, for --checkpoint.init_from.")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder with config.json and weights; the format is recognised"
    )
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument(
        "--double_bias", action="store_true", help="DNABERT's own code trained it: the decoder's bias counts twice"
    )
    parser.add_argument("--pieces", type=str, default="", help="folder of the sentencepiece model, for such a model")
    parser.add_argument("--license", type=str, default="", help="of the weights; default: what its README.md says")
    parser.add_argument("--no_verify", action="store_true", help="do not compare; recorded in the checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that the folder holds")
    options = parse(parser, arguments)
    config = options.model / "config.json"
    require(config.is_file(), f"{config}: no such file; --model names a Hugging Face model folder")
    log.info("importing %s", options.model)
    with Progress("loading the engine"):
        from megadna.hf.checkpoints import keep_freed_memory
        from megadna.hf.importing import import_folder

    keep_freed_memory()
    found = import_folder(
        options.model,
        options.output,
        check=not options.no_verify,
        overwrite=options.overwrite,
        double_bias=options.double_bias,
        pieces=options.pieces,
        license_name=options.license,
    )
    log.info("wrote %s: %s", options.output, found)
