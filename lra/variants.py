"""`python -m lra.variants`: the table of every configured attention, from its class, its YAML and a built model."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lra.command import command
from lra.config import Model
from lra.files import write_text

ATTN = Path(__file__).resolve().parents[1] / "conf" / "attn"
BEGIN, END = "<!-- variants: make variants write=README.md -->\n", "<!-- end of variants -->"
KEYS = {"write": ("", "a Markdown file whose table of variants is written anew, between its two marks")}

# The four facts of a variant's docstring: what it is, whose it is, what it costs, where it deviates.
FACTS = re.compile(
    r"(?P<what>.+?)\n\n.*?(?P<authors>[A-Z][\w-]+ (?:et al\.|& [A-Z][\w-]+)), \"(?P<title>.+?)\", (?P<year>\d{4})"
    r".*?(?P<url>https://\S+)"
    r".*?\bCosts? (?P<cost>O\(.+?)(?= for | beside |[.;:] |\.$|$)",
    re.DOTALL,
)


class Facts(NamedTuple):
    """What the docstring of a variant says of it."""

    what: str
    authors: str
    year: str
    url: str
    cost: str


class Row(NamedTuple):
    """A line of the table; `added`: parameters beyond softmax's, in the mlpen model of ListOps (2,048 positions)."""

    name: str
    facts: Facts
    wraps: dict[str, Any]
    limit: str
    added: int


def facts(document: str) -> Facts:
    """The facts of a class docstring; ValueError where it does not have the form."""
    found = FACTS.search(re.sub(r"\n +", "\n", document).replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n"))
    if found is None:
        raise ValueError(
            'a variant\'s docstring: what it is; "Author et al., "title", year. https://..."; "Cost O(...)"'
        )
    return Facts(*(found[part] for part in Facts._fields))


def limit(parameters: dict[str, Any] | None, seq_len: int) -> str:
    """Under which parameters a variant is softmax for inputs of N = seq_len tokens."""
    if parameters is None:
        return "none"
    said = [f"`{key}` = {in_tokens(value, seq_len)}" for key, value in parameters.items()]
    return ", ".join(said) or "always"


def in_tokens(value: Any, seq_len: int) -> str:
    """A number as a multiple of N where it is one."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(in_tokens(part, seq_len) for part in value)})"
    if isinstance(value, bool) or not isinstance(value, int) or value < seq_len or value % seq_len > 1:
        return str(value)
    if value % seq_len:
        return f"{in_tokens(value - 1, seq_len)} + 1"
    return "N" if value == seq_len else f"{value // seq_len} N"


def rows() -> list[Row]:
    """The variants in the order of the zoo, each followed by what is configured around it."""
    from attention_zoo import ZOO
    from lra.attention import WRAPS, attention
    from lra.model import parameter_count, transformer

    size = Model()

    def parameters(words: dict[str, Any]) -> int:
        core = attention(words, size.heads, size.head_dim, size.seq_len)
        return parameter_count(transformer(core, size, vocab=16, classes=10))

    order = list(ZOO)
    configured = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(ATTN.glob("*.yaml"))}
    plain = parameters({"name": "softmax"})
    table = []
    for name, words in sorted(configured.items(), key=lambda pair: (order.index(pair[1]["name"]), pair[0])):
        kind = ZOO[words["name"]]
        wraps = {key: value for key, value in words.items() if key in WRAPS and value != WRAPS[key]}
        bound = "none" if wraps.get("conv") else limit(kind.exact_limit(size.seq_len), size.seq_len)
        table.append(Row(name, facts(kind.__doc__ or ""), wraps, bound, parameters(words) - plain))
    return table


def markdown(table: Sequence[Row]) -> str:
    """The table of the README."""
    lines = [
        "| name | what it is | paper | cost in N tokens | is softmax at | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        what = row.facts.what.removesuffix(".").replace("|", r"\|")
        around = "".join(f", with {key} {value}" for key, value in row.wraps.items())
        paper = f"[{row.facts.authors}, {row.facts.year}]({row.facts.url})"
        lines.append(f"| `{row.name}` | {what}{around} | {paper} | {row.facts.cost} | {row.limit} | {row.added:+,} |")
    return "\n".join(lines) + "\n"


def replaced(text: str, table: str) -> str:
    """A Markdown text with the table between its marks; ValueError where it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the file has no lines {BEGIN.strip()} and {END}")
    return f"{before}{begin}{table}{end}{after}"


def run(options: dict[str, str]) -> int:
    """Print or write the table."""
    table = markdown(rows())
    if not options["write"]:
        print(table, end="")
        return 0
    file = Path(options["write"])
    write_text(file, replaced(file.read_text(), table))
    print(f"written: {file}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("lra.variants", "Every attention variant: paper, cost, exact limit, parameters.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
