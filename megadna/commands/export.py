"""`megadna export`: a checkpoint of any layout becomes a Hugging Face folder."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from megadna.arguments import new_parser, parse
from megadna.engine.distributed import parallel_world
from megadna.hf.export import check_exportable, export
from megadna.log import get_logger
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.build import build_tokenizer

log = get_logger(__name__)

ROWS = 2


def main(arguments: list[str]) -> None:
    """Write the fp32 master weights; refuse where the export's logits are not the training model's."""
    parser = new_parser("export", "Checkpoint -> Hugging Face folder that AutoModelForMaskedLM and AutoTokenizer load.")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="run folder (its newest checkpoint) or step folder"
    )
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that the folder holds")
    options = parse(parser, arguments)
    from megadna.train.checkpoint import checkpoint_model, find_checkpoint, master_weights, read_config, single_rank

    checkpoint = find_checkpoint(options.checkpoint)
    config = read_config(checkpoint)
    check_exportable(config)
    tokenizer = build_tokenizer(config.tokenizer)
    max_length = config.data.sequence_length
    assert isinstance(max_length, int), "a run saves its resolved sequence length"
    ids_BS = real_sequence(tokenizer, max_length)
    alone = single_rank(config)
    with parallel_world(alone.engine, alone.parallel) as world, torch.no_grad():
        model = checkpoint_model(checkpoint, tokenizer.vocab_size, world)
        logits_BSV = model(ids_BS.to(world.device)).transpose(0, 1).cpu()
    difference = export(
        master_weights(checkpoint),
        logits_BSV,
        ids_BS,
        config,
        tokenizer,
        options.output,
        max_length=max_length,
        overwrite=options.overwrite,
    )
    log.info("wrote %s: its logits equal the training model's, largest difference %.2g", options.output, difference)


def real_sequence(tokenizer: Tokenizer, max_length: int) -> torch.Tensor:
    """Token ids [2, S] of phage lambda (NC_001416.1, its first 1,020 bases), S at most 512, every seventh masked."""
    letters = np.frombuffer(files("megadna.hf").joinpath("phage_lambda.txt").read_bytes().strip(), np.uint8)
    num_tokens = min(max_length - 2, len(tokenizer.encode(letters)) // ROWS)
    inner = tokenizer.encode(letters)[: ROWS * num_tokens].reshape(ROWS, num_tokens).astype(np.int64)
    inner[:, ::7] = tokenizer.mask_id
    column = np.ones((ROWS, 1), np.int64)
    return torch.from_numpy(np.concatenate([column * tokenizer.cls_id, inner, column * tokenizer.sep_id], axis=1))
