"""Tables of Markdown."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table; `right`: the columns, counted from 0, whose cells stand on the right."""
    rule = "|".join("---:" if i in right else "---" for i in range(len(heads)))
    return "\n".join([line(heads), f"|{rule}|", *map(line, rows)])


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(literal(cell).replace("|", "\\|") for cell in cells) + " |"


def literal(text: str) -> str:
    """`text` with nothing in it that is read as HTML."""
    return html.escape(text, quote=False)
