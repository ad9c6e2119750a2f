"""`megadna train`: pretrain an encoder on a dataset."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from megadna.arguments import config_from, config_parser, parse
from megadna.config import Config
from megadna.errors import EXIT_REQUEUE, UserError
from megadna.files import mark
from megadna.log import get_logger, log_file, rank_from_environment
from megadna.ownership import MARKER, check_replaceable, clear_folder, is_unused, refuse_occupied, refuse_replacing
from megadna.processes import launched_here, run_ranks
from megadna.progress import Progress
from megadna.train.run_folder import NAME, running

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Train RUN from --config; started by plain python, torchrun or srun."""
    parser = config_parser("train", "Pretrain an encoder: one YAML is one experiment, --section.key overrides it.")
    parser.add_argument("--output", type=str, default="", help="run folder")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        default="never",
        choices=["always", "auto", "never"],
        help="continue from the newest checkpoint of the run folder; `--resume auto`: start if there is none yet",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run in the run folder first")
    what = "check config, data, layout and run folder, say what would be trained, and write nothing"
    parser.add_argument("--dry_run", action="store_true", help=what)
    options = parse(parser, arguments)
    config = config_from(options)
    if config.engine.dry_run:
        from megadna.train.describe import describe_rank

        sys.stdout.write(describe_rank(config))
        return
    if not options.output and not options.dry_run:
        raise UserError("--output is missing: name the run folder")
    run = Path(options.output)
    if not launched_here():
        log.info("reading %s", config.data.path or "the configuration")
    with Progress("loading the libraries"):
        from megadna.engine.distributed import launched_outside, world_size_from_environment
    num_ranks = world_size_from_environment() if launched_outside() else config.engine.num_processes
    _check(config, num_ranks)
    starts = not launched_outside() or (rank_from_environment() == 0 and not launched_here())
    if options.resume == "always" and not run.exists():
        raise UserError(f"{run}: no such run folder; leave out --resume to start there")
    configs = [str(path) for path in options.config or []]
    if options.dry_run:
        if options.output:
            _check_folder(run, config, resume=options.resume, overwrite=options.overwrite, configs=configs)
        from megadna.train.describe import describe_job

        sys.stdout.write(describe_job(config, num_ranks))
        return
    holding: AbstractContextManager[list[int]] = running(run) if starts else nullcontext([])
    with holding as lock:
        if starts:
            _prepare(run, config, resume=options.resume, overwrite=options.overwrite, configs=configs)
        with log_file(run / "log.txt"):
            if not launched_outside() and num_ranks > 1:
                sys.exit(run_ranks(num_ranks, ["train", *arguments], inherited=lock))
            if not _train(config, run, resume=options.resume):
                sys.exit(EXIT_REQUEUE)


def _train(config: Config, run: Path, *, resume: str) -> bool:
    """Train on this rank; False if it stopped early with everything saved."""
    import torch

    from megadna.engine.distributed import parallel_world

    with parallel_world(config.engine, config.parallel) as world:
        with Progress("loading the engine"):
            from megadna.train.faults import out_of_memory
            from megadna.train.loop import TrainingRun

        try:
            with Progress("building the model"):
                training = TrainingRun(config, run, world)
            return training.train(resume=resume)
        except torch.OutOfMemoryError as error:
            raise UserError(out_of_memory(config, world)) from error


def _check(config: Config, num_ranks: int) -> None:
    """UserError for every mistake that can be found before any process group starts."""
    from megadna.data.dataset import open_chunks
    from megadna.data.loader import resolve_sequence_length
    from megadna.engine.distributed import select_device
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.metrics import check_log

    select_device(config.engine)
    check_log(config.log)
    config.data_parallel_size(num_ranks)
    if not config.data.path:
        raise UserError("data.path is empty: name the dataset folder with --data.path (megadna preprocess writes one)")
    pools = [open_chunks(config.data.path, split) for split in ("train", "valid")]
    for path in config.validation.extra.values():
        open_chunks(path, "valid")
    resolve_sequence_length(config, pools[0].chunk_length, build_tokenizer(config.tokenizer))


def _prepare(run: Path, config: Config, *, resume: str, overwrite: bool, configs: Iterable[Path | str] = ()) -> None:
    """Refuse what must not be replaced or cannot be continued; create the run folder with its mark.

    configs: the YAML files of `config`, which every rank reads again.
    """
    if _check_folder(run, config, resume=resume, overwrite=overwrite, configs=configs):
        mark(run, "run")  # first: a half-deleted run is still a run
        clear_folder(run, keep=[MARKER, NAME])
    mark(run, "run")


def _check_folder(run: Path, config: Config, *, resume: str, overwrite: bool, configs: Iterable[Path | str]) -> bool:
    """Whether a run in the folder has to be deleted; UserError if it must not be, or cannot be continued."""
    from megadna.train.checkpoint import check_weights, find_checkpoint, has_checkpoints
    from megadna.train.run_folder import RUN, is_run

    if resume != "never" and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    source = Path(config.checkpoint.init_from) if config.checkpoint.init_from else None
    if overwrite:
        data = [config.data.path] if isinstance(config.data.path, str) else config.data.path
        extra = config.validation.extra.values()
        refuse_replacing(run, [source, config.tokenizer.model, *data, *extra, *configs])
    if resume == "always" or (resume == "auto" and has_checkpoints(run)):
        find_checkpoint(run, warn=False)  # the run itself logs which one it takes, in log.txt too
    elif source is not None:
        check_weights(find_checkpoint(source, warn=False), config)
    if is_unused(run, MARKER, NAME):
        return False
    if overwrite:
        check_replaceable(run, RUN)
    elif resume == "never" or (resume == "auto" and not is_run(run)):
        refuse_occupied(run, ", or add --resume to continue the run in it, or --overwrite to delete it")
    return overwrite
