"""`megadna import`: convert a Hugging Face folder to a checkpoint, to continue training from."""

from pathlib import Path

from megadna.arguments import new_parser, parse
from megadna.errors import require
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the checkpoint, unless megatron's model does not compute the same as the folder's."""
    parser = new_parser("import", "Hugging Face folder -> checkpoint of weights only, for --checkpoint.init_from.")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder with config.json and weights; the format is recognised"
    )
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument(
        "--double_bias",
        action="store_true",
        help="for models trained by DNABERT's own code, which adds the decoder's bias twice",
    )
    parser.add_argument(
        "--pieces", type=str, default="", help="folder of the sentencepiece model, if the tokenizer is one"
    )
    parser.add_argument("--license", type=str, default="", help="of the weights; default: the one in its README.md")
    parser.add_argument("--no_verify", action="store_true", help="skip the comparison; recorded in the checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint in the folder")
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
