"""`python -m lra.verdict_page`: our own results beside the published ones, as docs/results.md, a picture, a table."""

from __future__ import annotations

if __name__ == "__main__":
    # Before everything else is imported, so that Ctrl-C has its one line then too.
    from lra.command import answer_signals

    answer_signals()

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

from lra.command import command
from lra.differences import printed
from lra.files import write_atomically
from lra.ours import predictions, read
from lra.paired import pairs
from lra.published import OURS, PUBLISHED, read_published
from lra.verdict_figure import draw, panels, said
from lra.verdict_text import between, lacking, page, readme
from lra.verdicts import NOT_RUN, Standing, counted, standings
from lra.words import WordError, choose

PROTOCOL = "mlpen"
KEYS = {
    "published": (str(PUBLISHED), "folder of the published values and of ours.csv"),
    "out": (str(PUBLISHED.parents[1]), "where README.md and docs/ are"),
    "check": ("false", "true compares the files with what they should be, and writes nothing"),
}
PAGE, PICTURE, README = "docs/results.md", "docs/results.svg", "README.md"


def made(published: Path, out: Path) -> tuple[dict[str, bytes], list[Standing], list[str]]:
    """The files by name, the cells, and the cells that lack a diagnosis; without ours.csv nothing was run."""
    rows = read(published) if (published / OURS).exists() else []
    values = read_published(published)
    table = standings(rows, values, PROTOCOL)
    mine = [row for row in rows if row.protocol == PROTOCOL]
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted((out / "docs/diagnoses").glob("*.md"))}
    try:
        around = between((out / README).read_text(encoding="utf-8"), readme(table))
    except ValueError as error:
        raise ValueError(f"{out / README}: {error}") from None
    found = page(table, pairs(mine, lambda row: predictions(published, row)), printed(values), texts)
    files = {PAGE: found.encode(), PICTURE: draw(panels(table)), README: around.encode()}
    return files, table, lacking(table, texts)


def _fill(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def stale(file: Path, wanted: bytes) -> bool:
    """Whether a file is not what it should be; a picture is held to what it says, since matplotlib's bytes vary."""
    try:
        found = file.read_bytes()
        return said(found) != said(wanted) if file.suffix == ".svg" else found != wanted
    except (FileNotFoundError, ValueError):
        return True


def results(options: dict[str, str]) -> int:
    """Write or check, with a value for each of KEYS; returns the exit code."""
    check = choose("check", options["check"], ("true", "false")) == "true"
    for key in ("published", "out"):
        if not Path(options[key]).is_dir():
            raise WordError(f"{key}={options[key]} is not a folder")
    out = Path(options["out"])
    files, table, undiagnosed = made(Path(options["published"]), out)
    old = [name for name, wanted in files.items() if stale(out / name, wanted)]
    for name in old:
        if check:
            print(f"{out / name} is not what runs/published gives: make results", file=sys.stderr)
        else:
            write_atomically(out / name, partial(_fill, files[name]))
    for name in undiagnosed:
        print(
            f"{name} is worse than published and has no docs/diagnoses/{name}.md of three hypotheses", file=sys.stderr
        )
    found = counted(table)
    run = sum(found.values()) - found[NOT_RUN]
    print(f"{run} of {len(table)} cells run: " + (", ".join(f"{n} {what}" for what, n in found.items() if n)))
    print(f"{'checked' if check else 'written'}: {', '.join(files)}")
    return 1 if undiagnosed or (check and old) else 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("lra.verdict_page", "Our own results beside the published ones.", KEYS, results, words)


if __name__ == "__main__":
    sys.exit(main())
