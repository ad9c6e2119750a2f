"""`megadna doctor`: is this machine ready to train? Exit status 0: yes; 1: something has to be repaired."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megadna.arguments import new_parser, parse
from megadna.log import get_logger
from megadna.progress import Progress

if TYPE_CHECKING:
    from megadna.planning.doctor import Finding

log = get_logger(__name__)


def main(arguments: list[str]) -> None:
    """Print the findings, then `ready` or what to repair."""
    parser = new_parser("doctor", "Versions, packages, limits, disks, and a short self-test of the engine.")
    parser.add_argument("--folders", type=Path, nargs="*", default=[Path()], help="folders of datasets and checkpoints")
    options = parse(parser, arguments)
    log.info("loading the engine")
    with Progress("loading the engine"):
        from megadna.planning.doctor import examine
    findings = []
    for finding in examine([Path(folder) for folder in options.folders]):
        findings.append(_show(finding))
    findings.append(_show(_self_test()))
    problems = [finding for finding in findings if finding.remedy]
    if not problems:
        sys.stdout.write("ready\n")
        return
    sys.stdout.write("to repair:\n" + "".join(f"  {finding.name}: {finding.remedy}\n" for finding in problems))
    sys.exit(1)


def _self_test() -> "Finding":
    from megadna.planning.doctor import Finding, run_self_test

    try:
        with Progress("self-test"):
            found = run_self_test()
    except Exception as error:  # the user must see whatever ended a rank
        last = str(error).strip().rpartition("\n")[2]
        return Finding(
            "self-test", f"failed: {last}", "the engine does not run here: repair what is listed above first"
        )
    rate = f", all-reduce {found.all_reduce / 1e9:.2f} GB/s a rank" if found.all_reduce else ""
    text = f"{found.num_ranks} ranks on {found.device}, loss {found.first_loss:.3f} -> {found.last_loss:.3f}{rate}"
    return Finding("self-test", text, "" if found.passed else "the loss did not fall: please report this machine")


def _show(finding: "Finding") -> "Finding":
    sys.stdout.write(f"{'!' if finding.remedy else ' '} {finding.name:<20} {finding.text}\n")
    sys.stdout.flush()
    return finding
