"""megadna report: one interactive HTML page of one or several runs."""

import sys
from pathlib import Path

from megadna.arguments import new_parser, parse


def main(arguments: list[str]) -> None:
    """Write the report and print its path."""
    parser = new_parser("report", "One self-contained, interactive HTML page of one or several runs, side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder written by `megadna train`")
    parser.add_argument(
        "--output",
        type=str | None,
        metavar="FILE",
        help="HTML file to write; without it RUN/report/report.html (report/report.html here for several runs)",
    )
    options = parse(parser, arguments)
    from megadna.train.report import read_runs
    from megadna.train.report_page import write_report

    folders = [Path(run) for run in options.runs]
    default = (folders[0] if len(folders) == 1 else Path()) / "report" / "report.html"
    output = Path(options.output) if options.output else default
    write_report(read_runs(folders), output)
    sys.stdout.write(f"{output}\n")
