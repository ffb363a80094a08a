"""`python -m lra.collect`: runs of the recipes, from any machine, into our published table; every hash is checked."""

from __future__ import annotations

if __name__ == "__main__":
    # Before everything else is imported, so that Ctrl-C has its one line then too.
    from lra.command import answer_signals

    answer_signals()

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lra import lock, ours
from lra.command import command
from lra.compose import composer
from lra.folders import run_folders, visible
from lra.merged import Merged, merge
from lra.published import OURS
from lra.records import Name, name_of
from lra.verified import Facts, Verified, labels_sha256, prepared, verified
from lra.words import WordError, one_line

KEYS = {
    "from": ("runs", "folder of runs: those of this machine, or those brought home from another one"),
    "out": (f"runs/published/{OURS}", "the table; the predictions go to the folder ours beside it"),
    "data_dir": ("runs/.data", "prepared data, which the runs of a task are held to where they are there"),
}
# Of the directories that are left out together so many are named.
SHOWN = 1


class Found(NamedTuple):
    """What lies in a folder of runs: those that hold, (directory, reason) of those that do not, lines on the rest."""

    runs: list[Verified]
    refused: list[tuple[Path, str]]
    notes: list[str]


def collect(options: Mapping[str, str]) -> int:
    """Check, merge, write, tell, with a value for each of KEYS; returns the exit code."""
    root, out = Path(options["from"]), Path(options["out"])
    if options["from"] != KEYS["from"][0] and not root.is_dir():
        raise WordError(f"from={root} is not a folder")
    if out.name != OURS:
        raise WordError(f"out={out} must be a file of the name {OURS}, in any folder")
    folder = out.parent
    with alone(folder):
        old = ours.read(folder) if out.exists() else []
        broken = {row.cell: fault for row in old if (fault := fault_of(folder, row))}
        found = look(root)
        sound, refused = agreeing(
            found.runs, [row for row in old if row.cell not in broken], folder, options["data_dir"]
        )
        merged = merge(sound, old, broken)
        for run in merged.files:
            assert run.said, "only finished runs have predictions"
            ours.write_predictions(folder, run.row, run.said)
        ours.write(folder, merged.rows)
        remove_others(folder, merged.rows)
    return tell(merged, [*found.refused, *refused, *merged.refused], [*found.notes, *merged.notes], out)


def look(root: Path) -> Found:
    """Every run below `root` in a directory `<protocol>/<task>/<attn>/seed<k>`, checked."""
    runs: list[Verified] = []
    refused: list[tuple[Path, str]] = []
    notes: list[str] = []
    others, waiting = list[str](), list[str]()
    with composer() as composing:
        for folder in run_folders(root, notes):
            name = recipe_name(folder, root)
            if name is None:
                others.append(str(folder.relative_to(root)))
            elif process := lock.holder(folder):
                notes.append(f"left out {visible(str(folder))}: process {process} is training it")
            elif not (folder / "result.json").exists():
                waiting.append(str(folder.relative_to(root)))
            else:
                try:
                    runs.append(verified(folder, name, composing))
                except (ValueError, OSError) as error:
                    refused.append((folder, str(error)))
    for names, what in ((others, "whose words change the recipe"), (waiting, "without a result")):
        if names:
            shown = f"{', '.join(map(visible, names[:SHOWN]))}{', ...' if len(names) > SHOWN else ''}"
            notes.append(f"left out {len(names)} run{'s' if len(names) > 1 else ''} {what}: {shown}")
    return Found(runs, refused, notes)


def recipe_name(folder: Path, root: Path) -> Name | None:
    """What the last four parts of a run's path say, None where they are not those of a recipe's own words."""
    if len(folder.relative_to(root).parts) < 4:
        return None
    name = name_of(folder, folder.parents[3])
    return name if name and not name.words and name.seed == str(int(name.seed)) else None


def fault_of(folder: Path, row: ours.Row) -> str:
    """What is wrong with the predictions of a row of the table, empty where nothing is."""
    if row.status == "finished":
        try:
            ours.predictions(folder, row)
        except ValueError as error:
            return str(error)
    return ""


def agreeing(
    runs: Sequence[Verified], old: Sequence[ours.Row], folder: Path, data_dir: str
) -> tuple[list[Verified], list[tuple[Path, str]]]:
    """The runs whose data and labels are those of all others of their task, of the table and of what is prepared.

    Where runs differ and neither of the two says which are right, none of them is taken.
    """
    sound: list[Verified] = []
    refused: list[tuple[Path, str]] = []
    for task, source in sorted({(run.row.task, run.row.source) for run in runs}):
        members = [run for run in runs if (run.row.task, run.row.source) == (task, source)]
        rows = [row for row in old if (row.task, row.source) == (task, source)]
        try:
            facts = prepared(data_dir, task, source)
        except ValueError as error:
            refused += [(run.folder, str(error)) for run in members]
            continue
        labels = next((labels_sha256(ours.predictions(folder, row).labels) for row in rows if row.n), "")
        known = Facts(rows[0].data_sha256, labels) if rows else None
        for what, of in (("data_sha256", data_of), ("sha256 of the labels", labels_of)):
            members, wrong = alike(
                members, what, of, {"the table": of_facts(of, known), "what is prepared": of_facts(of, facts)}
            )
            refused += wrong
        sound += members
    return sound, refused


def data_of(run: Verified) -> str:
    return run.row.data_sha256


def labels_of(run: Verified) -> str:
    return labels_sha256(run.said.labels) if run.said else ""


def of_facts(of: Callable[[Verified], str], facts: Facts | None) -> str:
    if facts is None:
        return ""
    return facts.data_sha256 if of is data_of else facts.labels_sha256


def alike(
    runs: Sequence[Verified], what: str, of: Callable[[Verified], str], known: Mapping[str, str]
) -> tuple[list[Verified], list[tuple[Path, str]]]:
    """The runs of which a fact is what is known of it, and the same for all; and those of which it is not."""
    same: list[Verified] = []
    wrong: list[tuple[Path, str]] = []
    for run in runs:
        mine = of(run)
        other = next((whose for whose, value in known.items() if mine and value and value != mine), "")
        if other:
            wrong.append((run.folder, f"{what} {mine[:12]}, {other} has {known[other][:12]}"))
        else:
            same.append(run)
    by_value: dict[str, list[Verified]] = defaultdict(list)
    for run in same:
        by_value[of(run)].append(run)
    by_value.pop("", None)
    if len(by_value) > 1:
        for run in (run for members in by_value.values() for run in members):
            rival = next(members[0] for value, members in by_value.items() if value != of(run))
            line = f"{what} {of(run)[:12]}, {rival.folder} has {of(rival)[:12]}, and nothing says which is right"
            wrong.append((run.folder, line))
        same = [run for run in same if not of(run)]
    return same, wrong


def remove_others(folder: Path, rows: Sequence[ours.Row]) -> None:
    """Remove predictions that no row has any more."""
    named = {ours.file_of(folder, row) for row in rows if row.predictions_sha256}
    for file in set((folder / "ours").glob("*.npz")) - named:
        file.unlink()


def tell(merged: Merged, refused: Sequence[tuple[Path, str]], notes: Sequence[str], out: Path) -> int:
    """Print what was taken, kept and refused, and return the exit code."""
    lines = [(what, row.name, ended(row)) for what, row in merged.told]
    lines += [("refused", visible(str(folder)), one_line(reason)) for folder, reason in refused]
    widths = [max((len(line[i]) for line in lines if line[0] != "refused"), default=0) for i in range(2)]
    for what, name, said in lines:
        print(f"{what:{max(widths[0], 7)}}  {name:{widths[1]}}  {said}")
    for note in notes:
        print(note)
    counts = {what: sum(line[0] == what for line in lines) for what in ("taken", "kept", "broken", "refused")}
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what != "broken")
    print(f"{len(merged.rows)} run{'' if len(merged.rows) == 1 else 's'} in {out}: {said}")
    return 1 if counts["refused"] or counts["broken"] else 0


def ended(row: ours.Row) -> str:
    """What came out of a run, in a few words."""
    if row.n is None or row.correct is None:
        return f"{row.status} at step {row.steps:,}, on {row.device}"
    return f"{row.correct / row.n:.2%} ({row.correct:,} of {row.n:,}) after {row.steps:,} steps, on {row.device}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock on the folder of the table; another process that collects into it is waited for."""
    told = False
    while True:
        try:
            held = lock.take(folder)
        except lock.Held as process:
            if not told:
                print(f"process {process} is collecting into {folder}: waiting for it", flush=True)
            told = True
            time.sleep(0.2)
        else:
            with held:
                yield
            return


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("lra.collect", "Runs of the recipes into our published table.", KEYS, collect, words)


if __name__ == "__main__":
    sys.exit(main())
