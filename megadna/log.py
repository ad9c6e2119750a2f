"""Module loggers that write on rank 0 only, through rich on a terminal and as plain lines elsewhere."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from megadna.errors import UserError

# megatron-core warns at import about every optional accelerator that is absent; the log names the choice instead.
warnings.filterwarnings("ignore", module=r"megatron\.core.*")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
warnings.filterwarnings("ignore", message=".*grad attribute of a Tensor that is not a leaf.*")
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized.*")
warnings.filterwarnings("ignore", message=".*(Apex|apex|Transformer Engine|transformer_engine|NVIDIA).*")

console = Console(stderr=True)


def rank_from_environment() -> int:
    """Global rank as torchrun (RANK) or srun (SLURM_PROCID inside a step) states it; 0 for a lone process."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if "SLURM_STEP_ID" in os.environ:
        return int(os.environ.get("SLURM_PROCID", "0"))
    return 0


def get_logger(name: str) -> logging.Logger:
    """Logger of a module: `log = get_logger(__name__)`, then `log.info("%d chunks", n)`."""
    return logging.getLogger(name)


def counted(number: int, one: str, many: str = "") -> str:
    """`1 query`, `2,000 queries`: a number with its noun; many: the plural, where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


class StandardError(logging.Handler):
    """Lines to sys.stderr as it is at that moment: a caller (a notebook, a test) may have replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def setup_logging(level: int = logging.INFO) -> None:
    """Attach the handler of the `megadna` logger tree once; ranks above 0 keep only errors."""
    root = logging.getLogger("megadna")
    if root.handlers:
        return
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    else:
        handler = StandardError()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(level)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if rank_from_environment() == 0 else logging.ERROR)  # a log_file records everything
    root.propagate = False


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """On rank 0, also append what is logged to `path`: plain, dated lines, debug lines and a fatal error included."""
    root = logging.getLogger("megadna")
    is_main = rank_from_environment() == 0
    try:
        handler = logging.FileHandler(path, encoding="utf-8") if is_main else logging.NullHandler()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); move away what is there") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    root.addHandler(handler)
    try:
        yield
    except Exception as error:
        root.debug("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
