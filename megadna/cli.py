"""The `megadna` command: runs the verb, and turns a user's mistake into one line and exit status 2.

Each verb is a module of commands/ with `main(arguments)`, or a line of commands/finished.py; only the requested one is
imported, so `--help` is quick.
"""

import difflib
import importlib
import os
import re
import sys
from importlib.util import find_spec

from megadna import __version__
from megadna.errors import RunEnded, UserError
from megadna.log import rank_from_environment, setup_logging
from megadna.processes import end_with_launcher
from megadna.reading import first_line

COMMANDS = {
    "start": "a folder of genomes -> sample sheet, config and next commands",
    "preprocess": "FASTA files -> an indexed dataset of chunks",
    "inspect": "contents of a dataset, checkpoint or run folder",
    "train-tokenizer": "dataset -> byte-pair (sentencepiece) tokenizer",
    "leakage": "how much of a benchmark's sequences a dataset contains",
    "train": "pretrain an encoder on a dataset",
    "evaluate": "masked bits per base of a model, next to baselines",
    "export": "checkpoint -> Hugging Face folder",
    "import": "Hugging Face folder -> checkpoint to continue training from",
    "embed": "sequences -> embeddings of a Hugging Face encoder",
    "finetune": "labelled sequences -> a fine-tuned model and its scores",
    "predict": "a fine-tuned model over sequences, regions or a genome",
    "variants": "a VCF and its genome -> scores of each ALT allele by a masked language model",
    "annotate": "windows of a genome -> clusters of embeddings as coloured BED, and their enrichment",
    "search": "query sequences -> the nearest windows of a genome by embedding",
    "mutate": "the effect of every substitution in sequences or regions: tables, tracks and pictures",
    "dependencies": "which bases of a region depend on which others: maps, and stems and repeats in them",
    "attribute": "importance of every base for a model: attention, gradients or mutagenesis",
    "motifs": "bases of high importance -> motifs enriched against negatives",
    "generate": "a masked language model writes DNA: new, completed, or changed towards a goal",
    "benchmark": "a suite of tasks over seeds, next to baselines and published figures",
    "splice-sites": "genome and annotation -> splice sites and negatives as labelled windows",
    "windows": "peaks, start sites or bigWig values -> labelled windows and matched negatives",
    "doctor": "is this machine ready to train",
    "configs": "the experiments and launch scripts that come with megadna",
    "launch": "submit a training run to Slurm, or print its script",
    "plan": "does a job fit, how long does it take, which layout is best",
    "report": "one interactive HTML page of runs, side by side",
}

NEEDS = {
    "annotate": ("pandas", "scipy", "sklearn"),
    "attribute": ("pandas",),
    "benchmark": ("accelerate", "pandas", "peft", "scipy", "sklearn"),
    "dependencies": ("pandas",),
    "embed": ("pandas",),
    "finetune": ("accelerate", "pandas", "peft", "scipy", "sklearn"),
    "generate": ("pandas",),
    "motifs": ("pandas",),
    "mutate": ("pandas", "pyBigWig"),
    "predict": ("pandas",),
    "report": ("bokeh",),
    "search": ("pandas",),
    "splice-sites": ("pandas", "scipy"),
    "variants": ("pandas",),
    "windows": ("pandas", "pyBigWig", "scipy"),
}
"""Libraries that a verb always needs (all but bokeh are of `downstream`); those of an option are checked with it."""
_NO_MEMORY = re.compile("out of memory|(can't allocate|not enough) memory")  # of a GPU, or of torch's CPU allocator
REMEDY = "pip install 'megadna[downstream]' (in a clone: pip install -c constraints.txt -e '.[downstream]')"


def _usage() -> str:
    lines = [f"megadna {__version__}: DNA language models from FASTA files", "", "usage: megadna COMMAND --help", ""]
    lines += [f"  {name:<16} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run `megadna COMMAND ...`; exits 0, or 2 after one line that names the mistake and the remedy."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage() + "\n")
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"megadna {__version__}\n")
        return
    end_with_launcher()
    setup_logging()
    try:
        verb = _verb(arguments[0])
        if not {"-h", "--help"} & set(arguments):
            _require_libraries(verb)
        _run(verb, arguments[1:])
    except UserError as error:
        _fail(str(error), 2)
    except RunEnded as error:
        _fail(str(error), error.status)
    except (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        _fail(f"{error}; check the path and its permissions", 2)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        _fail(f"not enough memory ({first_line(error)}); give it less at once, or take a smaller model", 2)
    except ModuleNotFoundError as error:
        if (error.name or "megadna").startswith("megadna"):
            raise
        _fail(f"{error.name} is not installed; {REMEDY}", 2)
    except BrokenPipeError:  # `megadna inspect ... | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)


def _run(verb: str, arguments: list[str]) -> None:
    name = "import_" if verb == "import" else verb.replace("-", "_")  # a keyword of Python
    if find_spec(f"megadna.commands.{name}") is None:
        importlib.import_module("megadna.commands.finished").main(verb, COMMANDS[verb], arguments)
    else:
        importlib.import_module(f"megadna.commands.{name}").main(arguments)


def _verb(word: str) -> str:
    """The verb, with `_` or `-`; UserError with the nearest one where there is none."""
    verb = word.replace("_", "-")
    if verb not in COMMANDS:
        near = difflib.get_close_matches(verb, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {word!r}; {hint}")
    return verb


def _require_libraries(verb: str) -> None:
    """UserError that names the libraries of the verb that are not installed, before any work."""
    absent = [name for name in NEEDS.get(verb, ()) if find_spec(name) is None]
    if absent:
        raise UserError(f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed; {REMEDY}")


def _fail(message: str, status: int) -> None:
    rank = rank_from_environment()
    prefix = "megadna: error: " if rank == 0 else f"megadna: error on rank {rank}: "
    sys.stderr.write(prefix + " ".join(message.split()) + "\n")
    sys.exit(status)
