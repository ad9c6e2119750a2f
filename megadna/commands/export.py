"""`megadna export`: convert a checkpoint of any layout to a Hugging Face folder."""

from pathlib import Path

from megadna.arguments import new_parser, parse
from megadna.errors import require
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Write the folder, unless it does not compute the same as megatron's model; upload it where asked."""
    parser = new_parser("export", "Checkpoint -> Hugging Face folder that AutoModelForMaskedLM and AutoTokenizer load.")
    what = "run folder (its newest checkpoint) or step folder"
    parser.add_argument("--model", "--checkpoint", type=Path, required=True, help=what)
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face folder to write")
    parser.add_argument(
        "--format", type=str, default="auto", help="auto, aido, bert, multimolecule, megatron_bert or megadna"
    )
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="fp32: the master weights")
    parser.add_argument("--license", type=str, default="", help="of the weights, for the model card: apache-2.0, ...")
    parser.add_argument("--no_verify", action="store_true", help="skip the comparison; recorded in the folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an export in the folder")
    parser.add_argument("--push_to_hub", type=str, default="", help="upload to this repository (OWNER/NAME)")
    parser.add_argument("--public", action="store_true", help="push_to_hub: visible to everybody; default: private")
    options = parse(parser, arguments)
    require(options.model.is_dir(), f"{options.model}: no such run or checkpoint folder")
    log.info("exporting %s", options.model)
    with Progress("loading the engine"):
        from megadna.hf.checkpoints import keep_freed_memory
        from megadna.hf.export import check_upload, export, upload
        from megadna.train.checkpoint import find_checkpoint

    keep_freed_memory()
    check_upload(options.push_to_hub, options.license, public=options.public)
    found = export(
        find_checkpoint(options.model),
        options.output,
        wanted=options.format,
        dtype=options.dtype,
        check=not options.no_verify,
        overwrite=options.overwrite,
        license_name=options.license,
    )
    log.info("wrote %s: %s", options.output, found)
    if options.push_to_hub:
        log.info("uploading")
        log.info("uploaded to %s", upload(options.output, options.push_to_hub, public=options.public))
