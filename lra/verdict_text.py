"""Our own results as Markdown: the README's table and the page docs/results.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lra.difference_text import paired, published_tables
from lra.differences import TEST_ITEMS, Printed
from lra.intervals import wilson
from lra.markdown import grid, line, literal
from lra.ours import Row
from lra.paired import Pair
from lra.published import MARKS, Published, floors
from lra.verdicts import (
    ALONE,
    BETTER,
    FAILED,
    NOT_RUN,
    REPRODUCED,
    UNVERIFIED,
    WITHIN,
    WORSE,
    Standing,
    counted,
    marked,
    mean,
)

BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
# Of a verdict in the README, where there is no room for words.
VERDICT_SIGNS = {REPRODUCED: "✓", BETTER: "▲", WORSE: "▼", UNVERIFIED: "○", ALONE: "", FAILED: "✗", NOT_RUN: ""}
UNFINISHED = "…"
MEANINGS = {
    REPRODUCED: f"the published value is in our 95% interval, or at most {WITHIN:g} point away",
    BETTER: "ours is above that",
    WORSE: "ours is below that; its diagnosis is on the page",
    FAILED: "every run of ours diverged",
    UNVERIFIED: "run, but the published value could not be checked in its source: no claim",
    ALONE: "run, and nobody published a value",
    NOT_RUN: "no run has finished",
}
ROOT = "root-operator classifier"
MULTIPLE = "corrected by Holm over all pairs of a task"


def between(text: str, section: str) -> str:
    """A Markdown text with the section between its marks; ValueError where it has not both, once and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"the file has no lines {BEGIN.strip()} and {END}, once each")
    return f"{before}{begin}{section}{end}{after}"


def readme(table: Sequence[Standing]) -> str:
    """The section of the README: variants in rows, tasks in columns."""
    best: dict[tuple[str, str], Standing] = {}
    for standing in table:
        best.setdefault((standing.task, standing.attn), standing)
    tasks = list(dict.fromkeys(standing.task for standing in table))
    attns = sorted({standing.attn for standing in table}, key=lambda attn: (attn != "softmax", attn))
    heads = [f"{task} ({listops()})" if task == "listops" else task for task in tasks]
    lines = [line(["attention", *heads]), "|---|" + "---:|" * len(tasks)]
    for attn in attns:
        lines.append(line([f"`{attn}`", *(_short(best.get((task, attn))) for task in tasks)]))
    found = counted(best.values())
    signs = [f"{sign} {v} ({MEANINGS[v]})" for v, sign in VERDICT_SIGNS.items() if sign and found[v]]
    signs += [f"{UNFINISHED} begun"] * any(standing.rows and not standing.finished for standing in best.values())
    generated = sorted({s.task for s in best.values() if s.finished and "generated" in s.task_name})
    lines += [
        "",
        "Test accuracy in %, protocol mlpen. Bold: ours, the mean over its seeds, with the 95% interval; in round"
        f" brackets: not run to its end, the published value, `{MARKS['unverified']}` where that could not be checked"
        " in its source. "
        + (f"Signs: {'; '.join(signs)}. " if signs else "")
        + (f"Our data of {' and '.join(generated)} are `generated`. " if generated else "")
        + f"Of {sum(found.values())} cells: {_counts(found)}.",
        "",
        "![Accuracy against speed, memory as area, of every finished cell](docs/results.svg)",
        "",
        "Written by `make results`; [docs/results.md](docs/results.md) has every run, the paired tests, which published"
        " differences are real, and each number's command.",
    ]
    return "\n".join(lines) + "\n"


def listops() -> str:
    """What stands beside every number of ListOps: its interval from the number of items, what the root alone gives."""
    n, root = TEST_ITEMS["listops"], floors("listops", "generated")[ROOT]
    return f"{n:,} items: ±{half_width(root, n):.1f}; the root operator alone: {root}"


def half_width(accuracy: float, n: int) -> float:
    """Half of Wilson's 95% interval in points, of one run with this accuracy in percent."""
    low, high = wilson(accuracy / 100 * n, n)
    return 50 * (high - low)


def _short(standing: Standing | None) -> str:
    if standing is None:
        return "-"
    sign = VERDICT_SIGNS[standing.verdict]
    if standing.accuracy is None or standing.interval is None:
        sign = sign or UNFINISHED * bool(standing.rows)
        return " ".join(filter(None, (f"({marked(standing.value)})" if standing.value else "-", sign)))
    return f"**{standing.accuracy:.1f}** [{standing.interval.low:.1f}, {standing.interval.high:.1f}] {sign}".rstrip()


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in found.items() if count) or "none"


def page(
    table: Sequence[Standing], pairs: Sequence[Pair], tables: Sequence[Printed], diagnoses: Mapping[str, str]
) -> str:
    """docs/results.md. `diagnoses`: the text of each by the name of its cell."""
    numbered = list(dict.fromkeys((value.source, value.url) for s in table for value in _values(s)))
    parts = [
        _opening(table),
        *_verdicts(table, numbered),
        *_runs(table),
        *_speeds(table),
        *paired(pairs),
        *published_tables(tables),
        *_diagnoses(table, diagnoses),
        "## Sources\n",
        "\n".join(f"- [{i}] {literal(source)}, {url}" for i, (source, url) in enumerate(numbered, start=1)),
    ]
    return "\n".join(parts) + "\n"


def _values(standing: Standing) -> list[Published]:
    return [standing.value, *standing.others] if standing.value else []


def _opening(table: Sequence[Standing]) -> str:
    meanings = "\n".join(f"- **{verdict}**: {meaning}." for verdict, meaning in MEANINGS.items())
    return f"""# Results

Our own runs beside the published numbers, protocol mlpen. `make results` writes this page, its picture and the README's
table from `runs/published/*.csv` alone; `make sweep sweep=reproduce` makes the runs, `make collect` brings them to
`runs/published/ours.csv`, and `make compare` shows the same runs where they were made. Of {len(table)} cells:
{_counts(counted(table))}.

{meanings}

Where a cell was published by several sources under this protocol, one that could be checked counts before one that
could not, then the protocol's own paper (which `make compare` shows first); the others stand beside it, each with its
own verdict. `{MARKS["unverified"]}` marks a value that could not be checked in its source, `{MARKS["secondary"]}` one
read in another work that quotes it.

The interval of one seed is Wilson's over the test items: the spread of seeds is not in it. Of several seeds it is
Student's over the seeds, and never narrower than Wilson's over the items of the one test set that the seeds share.
"""


def _verdicts(table: Sequence[Standing], numbered: Sequence[tuple[str, str]]) -> Iterable[str]:
    yield "## Every cell\n\nCommand: `make results`. Accuracies in %, differences (ours minus published) in points.\n"
    for task in dict.fromkeys(standing.task for standing in table):
        mine = [standing for standing in table if standing.task == task]
        yield f"### {task}\n"
        if task in TEST_ITEMS:
            yield f"{_beside(task, mine)}\n"
        heads = (
            "attention",
            "data",
            "ours",
            "95% interval",
            "seeds",
            "steps",
            "published",
            "diff",
            "verdict",
            "other sources",
        )
        yield grid(heads, [_verdict_row(standing, numbered) for standing in mine], right=(2, 3, 5, 6, 7)) + "\n"


def _beside(task: str, mine: Sequence[Standing]) -> str:
    n = TEST_ITEMS[task]
    if task != "listops":
        return f"{n:,} test items: the interval of one run is ±{half_width(50, n):.1f} points at most."
    known = floors(task, "generated")
    others = "; ".join(f"{name} {value}%" for name, value in known.items())
    half = half_width(known[ROOT], n)
    values = [value.accuracy for standing in mine for value in _values(standing) if value.accuracy is not None]
    near = sum(abs(accuracy - known[ROOT]) <= half for accuracy in values)
    return (
        f"{n:,} test items: the 95% interval of one run is ±{half:.1f} points. What needs no attention: {others}"
        f" (`make data-doctor task=listops`). A model at {known[ROOT]}% may have learned to read the first token and no"
        f" more: {near} of the {len(values)} published values below are within {half:.1f} points of that."
    )


def _verdict_row(standing: Standing, numbered: Sequence[tuple[str, str]]) -> list[str]:
    interval = standing.interval
    finished = standing.finished
    others = [f"{_cited(value, numbered)}{_beside_other(standing, value)}" for value in standing.others]
    difference = standing.difference(standing.value)
    return [
        f"`{standing.attn}`",
        f"{standing.rows[0].source} {standing.rows[0].data_sha256[:8]}" if standing.rows else "-",
        "-" if standing.accuracy is None else f"{standing.accuracy:.1f}",
        "-" if interval is None else f"{interval.low:.1f} to {interval.high:.1f} ({interval.kind})",
        ", ".join(str(row.seed) for row in finished) or "-",
        ", ".join(dict.fromkeys(f"{row.steps:,}" for row in finished)) or "-",
        "-" if standing.value is None else _cited(standing.value, numbered),
        "-" if difference is None else f"{difference:+.1f}",
        _verdict(standing, difference),
        "; ".join(others) or "-",
    ]


def _verdict(standing: Standing, difference: float | None) -> str:
    """The verdict, with what a reader should hold against it."""
    wide = standing.verdict == REPRODUCED and difference is not None and abs(difference) > WITHIN
    said = ["by the width of our interval alone"] * wide + [standing.progress] * bool(standing.progress)
    return f"{standing.verdict} ({'; '.join(said)})" if said else standing.verdict


def _cited(value: Published, numbered: Sequence[tuple[str, str]]) -> str:
    return f"{marked(value)} [{numbered.index((value.source, value.url)) + 1}]"


def _beside_other(standing: Standing, value: Published) -> str:
    difference = standing.difference(value)
    return "" if difference is None else f" ({difference:+.1f}, {standing.against(value)})"


def _runs(table: Sequence[Standing]) -> Iterable[str]:
    rows = [row for standing in table for row in standing.rows]
    yield "## What was run, and what was not\n"
    tasks = dict.fromkeys(standing.task for standing in table)
    for task in tasks:
        mine = [standing for standing in table if standing.task == task]
        run = [s.attn for s in mine if s.finished]
        begun = [s.attn for s in mine if s.rows and not s.finished]
        said = [f"{len(run)} of {len(mine)} cells run to the end" + (f" ({', '.join(run)})" if run else "")]
        said += [f"begun: {', '.join(begun)}"] * bool(begun)
        yield f"- {task}: {'; '.join(said)}."
    yield (
        "\nThe next ones: `make sweep sweep=reproduce`, or a part of it with `task=`, `attn=`, `seed=`; then"
        " `make collect` and `make results`.\n"
    )
    if not rows:
        return
    yield "Each run, by `make lra task=<task> attn=<attention> seed=<seed>`; data, configuration, result: sha256.\n"
    heads = (
        *("task", "attention", "seed", "status", "steps", "right", "hours", "device", "dtype", "kernel"),
        *("declared", "parameters", "date", "commit", "data", "configuration", "result"),
    )
    yield grid(heads, [_run_row(row) for row in rows], right=(2, 4, 5, 6, 11)) + "\n"
    hours = sum(row.seconds or 0 for row in rows) / 3600
    versions = "; ".join(dict.fromkeys(row.versions for row in rows if row.versions))
    yield f"{len(rows)} run{'s' * (len(rows) != 1)}, {hours:.1f} hours in all; {literal(versions) or 'no versions'}.\n"


def _run_row(row: Row) -> list[str]:
    commit = row.git_commit[:8] + "-dirty" * row.git_commit.endswith("-dirty")
    return [
        *(row.task, f"`{row.attn}`", str(row.seed), row.status.replace("_", " "), f"{row.steps:,}"),
        "-" if row.correct is None or row.n is None else f"{row.correct:,} of {row.n:,}",
        "-" if row.seconds is None else f"{row.seconds / 3600:.2f}",
        row.device + (f", {row.processes} processes" if row.processes != 1 else ""),
        *(row.dtype, row.kernel or "torch's", row.declared.replace(",", ", ") or "-", f"{row.params:,}", row.date),
        *(commit or "-", row.data_sha256[:8], row.config_sha256[:8], row.result_sha256[:8]),
    ]


def _speeds(table: Sequence[Standing]) -> Iterable[str]:
    yield "## Accuracy against speed\n"
    yield "![Accuracy against speed, memory as area](results.svg)\n"
    found: dict[str, list[list[str]]] = {}
    for standing in table:
        for device, rows in standing.by_device().items():
            speed = mean(rows, lambda row: row.tokens_per_s)
            memory = max((row.peak_memory_mb for row in rows if row.peak_memory_mb is not None), default=None)
            hours = mean(rows, lambda row: row.train_seconds and row.train_seconds / 3600)
            numbers = ("-" if speed is None else f"{speed:,.0f}", "-" if memory is None else f"{memory:,.0f}")
            accuracy = "-" if standing.accuracy is None else f"{standing.accuracy:.1f}"
            cells = [
                standing.task_name,
                f"`{standing.attn}`",
                accuracy,
                *numbers,
                "-" if hours is None else f"{hours:.2f}",
            ]
            found.setdefault(device, []).append(cells)
    if not found:
        yield "No run has finished yet.\n"
    elif len(found) > 1:
        yield (
            "A table per device: speeds and memory of one do not compare with those of another. The accuracy of a cell"
            " is over all its seeds, wherever they ran.\n"
        )
    for device, lines in found.items():
        measures = "`tokens_per_s`, `peak_memory_mb`, `train_seconds` of each run's result"
        yield f"On {literal(device)}, in training steps ({measures}):\n"
        heads = ("task", "attention", "test %", "tokens/s", "peak MB", "hours of training, a run")
        yield grid(heads, lines, right=(2, 3, 4, 5)) + "\n"


def _diagnoses(table: Sequence[Standing], diagnoses: Mapping[str, str]) -> Iterable[str]:
    yield "## Diagnoses\n"
    named = {standing.name: standing for standing in table if standing.rows}
    shown = [name for name in named if name in diagnoses]
    without = lacking(table, diagnoses)
    if without:
        yield f"Worse than published, and without a diagnosis of three hypotheses yet: {', '.join(without)}.\n"
    elif not shown:
        yield "None: no cell is worse than published.\n"
    for name in shown:
        yield f"### {named[name].task}, {named[name].attn}: {named[name].verdict}\n"
        # The title is above already; the file's own sections go below it.
        said = [text for text in diagnoses[name].splitlines() if not text.startswith("# ")]
        yield "\n".join(f"##{text}" if text.startswith("## ") else text for text in said).strip() + "\n"


def lacking(table: Sequence[Standing], diagnoses: Mapping[str, str]) -> list[str]:
    """The cells that are worse and have no diagnosis with three hypotheses, each a section that begins with `## `."""
    return [
        standing.name
        for standing in table
        if standing.verdict == WORSE and f"\n{diagnoses.get(standing.name, '')}".count("\n## ") < 3
    ]
