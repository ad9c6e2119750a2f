"""Pages that load nothing: their frame and tables; page.css and page.js (what hovering shows, and the interactive
dependency map) are in each.

The script reads two JSON elements: `bases-data` (a text for each base, and the shares of the figure's width where the
first begins and the last ends) and `map-data` (values as 16-bit numbers in base64, positions, bases, runs). Script and
style do without the characters that XML reserves, so that a page is well-formed XML as well as HTML.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CSS, SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))


def page(title: str, facts: str, body: Sequence[str]) -> str:
    """A whole page; `body` is XML."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>',
            f"<title>{html.escape(title)}</title><style>{CSS}</style></head><body>",
            f'<h1>{html.escape(title)}</h1><p class="facts">{html.escape(facts)}</p>',
            *body,
            f'<div id="tip"></div><script>{SCRIPT}</script></body></html>\n',
        ]
    )


def json_element(name: str, content: Any) -> str:
    """A JSON element that neither HTML nor XML misreads."""
    text = json.dumps(content, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


class Markup(str):
    """A cell of a table that is XML already."""


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; columns with text are aligned to the left."""
    texts = [any(isinstance(row[number], str) for row in rows) for number in range(len(names))]

    def cells(values: Sequence[Any], tag: str) -> str:
        kinds = (' class="text"' if is_text else "" for is_text in texts)
        written = (f"{value:.4g}" if isinstance(value, float) else value for value in values)
        shown = (value if isinstance(value, Markup) else html.escape(str(value)) for value in written)
        return "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(kinds, shown, strict=True))

    lines = [f"<tr>{cells(names, 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in rows)]
    return "<table>" + "".join(lines) + "</table>"
