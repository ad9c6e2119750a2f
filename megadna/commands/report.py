"""megadna report: plots and one HTML page of one or several runs."""

import sys
from pathlib import Path

from megadna.arguments import new_parser, parse


def main(arguments: list[str]) -> None:
    """Write the report and print its path."""
    parser = new_parser("report", "Plots and one self-contained HTML page of one or several runs, side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder written by `megadna train`")
    parser.add_argument(
        "--output",
        type=str | None,
        metavar="FILE",
        help="HTML file to write; without it RUN/report/report.html (report/report.html here for several runs), "
        "with the figures as PNG next to it",
    )
    options = parse(parser, arguments)
    from megadna.train.report import read_runs, write_report  # matplotlib is slow to import

    folders = [Path(run) for run in options.runs]
    default = (folders[0] if len(folders) == 1 else Path()) / "report" / "report.html"
    output = Path(options.output) if options.output else default
    write_report(read_runs(folders), output, figures_beside=options.output is None)
    sys.stdout.write(f"{output}\n")
