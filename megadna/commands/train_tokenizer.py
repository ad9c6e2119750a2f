"""`megadna train-tokenizer`: a sample of a dataset -> a byte-pair tokenizer folder."""

import sys
from pathlib import Path

from megadna.arguments import new_parser, parse
from megadna.data.dataset import open_chunks
from megadna.files import atomic_folder
from megadna.log import get_logger
from megadna.ownership import check_folder
from megadna.progress import Progress
from megadna.tokenizer.bpe import BpeTokenizer, train_bpe

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Train on chunks spread evenly over the training split and print a summary."""
    parser = new_parser("train-tokenizer", "A sample of a dataset -> a sentencepiece (BPE) tokenizer folder.")
    what = "dataset folder (or --data), or a list of them"
    parser.add_argument("--data.path", type=list[str] | str, required=True, help=what)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must be empty or absent")
    parser.add_argument("--vocab_size", type=int, default=4096, help="tokens, 6 special ones included")
    parser.add_argument("--sample_bases", type=int, default=20_000_000, help="bases to train on, about")
    parser.add_argument("--max_piece_length", type=int, default=16, help="bases of the longest token")
    options = parse(parser, arguments)
    check_folder(options.output, None)
    pool = open_chunks(options.data.path, "train")
    log.info("training a tokenizer on %s", options.data.path)
    with Progress("loading the libraries"):
        from megadna.data.evaluation import evaluation_chunks
    numbers = evaluation_chunks(len(pool), max(1, options.sample_bases // pool.chunk_length))
    info = {"datasets": [dataset.manifest.dataset_id for dataset in pool.datasets], "chunks": len(numbers)}
    with atomic_folder(options.output) as work, Progress(f"merging pairs of {len(numbers)} chunks"):
        train_bpe(
            (pool[number] for number in numbers.tolist()),
            work,
            vocab_size=options.vocab_size,
            max_piece_length=options.max_piece_length,
            info=info,
        )
    tokenizer = BpeTokenizer(options.output)
    longest = max(tokenizer.tokens()[tokenizer.n_id :], key=len)
    sys.stdout.write(
        f"{tokenizer.vocab_size} tokens from {len(numbers)} chunks, {tokenizer.mean_bases:.2f} bases a token, "
        f"longest {longest}\nwrote {options.output}; use it with --tokenizer.kind sentencepiece "
        f"--tokenizer.model {options.output}\n"
    )
