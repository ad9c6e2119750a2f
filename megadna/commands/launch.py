"""`megadna launch slurm`: launch/slurm.sbatch filled in for one experiment, checked, and submitted or printed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from megadna.arguments import config_from, config_parser, parse, spelled
from megadna.errors import UserError, require
from megadna.packaged import LAUNCH

OWN = ("config", "output", "sbatch", "nodes", "ranks_per_node", "dry_run")


def main(arguments: list[str]) -> None:
    """Print the script (--dry_run) or submit it with sbatch; the layout is checked first."""
    if arguments[:1] not in (["slurm"], ["-h"], ["--help"]):
        raise UserError("megadna launch takes the scheduler first: megadna launch slurm --config YAML --output RUN ...")
    arguments = arguments[1:] if arguments[0] == "slurm" else arguments
    parser = config_parser("launch slurm", "Submit a training run to Slurm, one task per GPU.")
    parser.add_argument("--output", type=str, default="", help="run folder, on a file system shared by all nodes")
    parser.add_argument("--sbatch", type=str, default="", help="sbatch's own options: 'time=12:00:00 partition=gpu'")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the job")
    parser.add_argument("--ranks_per_node", type=int, default=8, help="GPUs of a node (engine.device cpu: ranks)")
    parser.add_argument("--dry_run", action="store_true", help="print the script, submit nothing")
    arguments = spelled(parser, arguments)
    options = parse(parser, arguments)
    config, ranks = config_from(options), options.nodes * options.ranks_per_node
    require(bool(options.config and options.output), "give the YAML with --config and the run folder with --output")
    require(ranks > 0, f"--nodes {options.nodes} and --ranks_per_node {options.ranks_per_node} must be positive")
    config.data_parallel_size(ranks)
    directives = {
        "job-name": Path(options.output).name,
        "nodes": str(options.nodes),
        "ntasks-per-node": str(options.ranks_per_node),
        "gpus-per-node": str(options.ranks_per_node) if config.engine.device != "cpu" else "",
        "cpus-per-task": str(config.data.num_workers + 2),  # the rank, its loader's workers, the checkpoint's writer
    }
    for word in shlex.split(options.sbatch):
        key, assigned, value = word.partition("=")
        require(bool(assigned) and not key.startswith("-"), f"--sbatch takes words such as partition=gpu, got {word!r}")
        directives[key] = value
    values = {"CONFIG": shlex.quote(str(options.config[0])), "RUN": shlex.quote(options.output)}
    script = fill(directives, values | {"OPTIONS": f"({shlex.join(_keys(arguments))})"})
    if options.dry_run:
        sys.stdout.write(script)
        return
    require(bool(config.data.path), "data.path is empty: give the dataset folder with --data.path")
    require(shutil.which("sbatch") is not None, "sbatch is not on the PATH; run this on a login node, or add --dry_run")
    sys.exit(subprocess.run(["sbatch"], input=script, text=True).returncode)


def fill(directives: dict[str, str], values: dict[str, str]) -> str:
    """launch/slurm.sbatch with these #SBATCH lines (an empty value drops the line) and these shell variables."""
    script = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    for key, value in directives.items():
        line = f"#SBATCH --{key}={value}\n" if value else ""
        script, found = re.subn(rf"#SBATCH --{key}=.*\n", lambda _, line=line: line, script)  # type: ignore[misc]
        if not found:
            script = script.replace("#SBATCH", f"{line}#SBATCH", 1)
    for name, value in values.items():
        script = re.sub(rf"(?m)^{name}=.*$", lambda _, text=f"{name}={value}": text, script)  # type: ignore[misc]
    return script


def _keys(arguments: list[str]) -> list[str]:
    """The arguments that override keys of the config, unchanged, further config files included."""
    kept: list[str] = []
    own = set(OWN)
    words = iter(arguments)
    for word in words:
        key, assigned, _ = word.removeprefix("--").partition("=")
        pair = [word] if assigned or key == "dry_run" else [word, next(words)]
        kept += [] if key in own else pair
        own.discard(key)
    return kept
