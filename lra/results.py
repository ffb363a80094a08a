"""`python -m lra.results`: all runs beside the published numbers, in the terminal, as Markdown, CSV and HTML."""

from __future__ import annotations

if __name__ == "__main__":
    # Before everything else is imported, so that Ctrl-C has its one line then too.
    from lra.command import answer_signals

    answer_signals()

import sys
import time
from collections.abc import Sequence

from rich.console import Console

from lra.cells import cells, select
from lra.command import command
from lra.commit import git_commit
from lra.crossover import crossover
from lra.files import write_text
from lra.folders import existing
from lra.outcomes import collect
from lra.page import build, contents, front_end
from lra.published import read_published
from lra.table import comma_separated, markdown, say, show, show_published

KEYS = {
    "runs": ("runs", "folder of the runs; the files go to <runs>/report"),
    "task": ("", "only these tasks, a list with commas"),
    "attn": ("", "only these attentions"),
    "protocol": ("", "only these protocols"),
}


def compare(options: dict[str, str]) -> int:
    """Read, print, write, with a value for each of KEYS; returns the exit code."""
    root = existing(options["runs"], KEYS["runs"][0])
    wanted = {key: value for key, value in options.items() if key != "runs" and value}
    every, problems = collect(root)
    runs, published = select(every, read_published(), wanted)

    console = Console(highlight=False)
    filters = " ".join(f"{key}={value}" for key, value in wanted.items())
    if not runs:
        say(console, f"no runs{' of ' + filters if filters else ''} in {root} yet: make lra task=listops attn=mra2")
        for problem in problems:
            say(console, problem)
        console.print()
        show_published(console, published)
        return 0

    table = cells(runs, published)
    lengths, unread = crossover(attentions=wanted.get("attn", "").split(",") if "attn" in wanted else ())
    page = contents(table, [*problems, *unread], filters, lengths, git_commit(), time.time())
    files = {
        "compare.md": markdown(table, page["problems"], filters),
        "compare.csv": comma_separated(table),
        "index.html": build(*front_end(), page),
    }
    show(console, table)
    for line in (*page["notes"], *page["sources"], *page["problems"]):
        say(console, line)
    try:
        for name, text in files.items():
            write_text(root / "report" / name, text)
    except OSError as error:
        raise OSError(f"all is told above, but the report cannot be written: {error}") from error
    say(console, f"written: {', '.join(str(root / 'report' / name) for name in files)}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("lra.results", "All runs beside the published numbers.", KEYS, compare, words)


if __name__ == "__main__":
    sys.exit(main())
