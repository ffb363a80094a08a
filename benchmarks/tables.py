"""`python -m benchmarks.tables`: the tables of docs/ from the CSV files that the benchmarks write."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.baseline_losses import LossRow, differences
from benchmarks.rows import grid
from benchmarks.studies import pivots
from lra.command import command
from lra.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- {}: make bench name=tables -->\n", "<!-- end of {} -->"
KEYS = {"docs": ("docs", "the folder of the pages whose tables are written anew, between their marks")}

Row = dict[str, str]


def read(file: Path) -> list[Row]:
    """The lines of a CSV file."""
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def about(rows: Sequence[Row]) -> str:
    """Where and with what the rows were measured."""
    first = rows[0]
    shape = f"(B, H, D) = ({first['batch']}, {first['heads']}, {first['head_dim']})"
    return f"{first['device']}; torch {first['torch']}, {first['dtype']}, {shape}, commit `{first['commit'][:12]}`\n\n"


def cores(rows: Sequence[Row]) -> str:
    """Each attention: its step at every length, how it grows at the end, its memory."""
    lengths = sorted({int(row["n"]) for row in rows})
    lines = []
    for name in dict.fromkeys(row["attn"] for row in rows):
        mine = {int(row["n"]): row for row in rows if row["attn"] == name}
        steps = [f"{float(mine[n]['step_ms']):.0f} ms, x {float(mine[n]['step_ratio']):.2f}" for n in lengths]
        last = mine[lengths[-1]]
        lines.append([f"`{name}`", *steps, f"x {float(last['step_growth']):.2f}", f"{float(last['peak_mb']):.0f} MiB"])
    head = ["attention", *(f"N = {n:,}" for n in lengths), f"{lengths[-2]:,} to {lengths[-1]:,}", "peak, longest"]
    return about(rows) + grid(head, lines)


def peers(rows: Sequence[Row]) -> str:
    """Each public implementation: its step and its memory as a multiple of ours."""
    lengths = sorted({int(row["n"]) for row in rows})
    ours = {(row["attn"], row["n"]): row for row in rows if row["implementation"] == "zoo layer"}
    lines = []
    for name, package in dict.fromkeys((row["attn"], row["implementation"]) for row in rows):
        if package == "zoo layer":
            continue
        theirs = [row for row in rows if (row["attn"], row["implementation"]) == (name, package)]
        memory = [float(row["peak_mb"]) / float(ours[name, row["n"]]["peak_mb"]) for row in theirs]
        lines.append([f"`{name}`", package, *(f"{float(row['step_ratio']):.2f}" for row in theirs)])
        lines[-1] += [f"{share:.2f}" for share in memory]
    head = ["attention", "package", *(f"time, {n:,}" for n in lengths), *(f"memory, {n:,}" for n in lengths)]
    return about(rows) + grid(head, lines)


def preparing(rows: Sequence[Row]) -> str:
    """Each data set that needs no download: what it holds, and what preparing it costs."""
    lines = [
        [
            f"`{row['task']}`", row["source"], f"{int(row['examples']):,}", f"{int(row['tokens']):,}",
            f"{float(row['wall_s']):.0f} s", f"{float(row['cpu_s']):.0f} s", f"{float(row['peak_rss_mb']):.0f} MB",
            f"{float(row['arrays_mb']):,.0f} MB", f"{float(row['records_mb']):,.0f} MB",
        ]
        for row in rows
    ]  # fmt: skip
    head = [
        "task",
        "source",
        "examples",
        "tokens",
        "time",
        "processor time",
        "peak memory",
        "arrays",
        "records of TFDS",
    ]
    return measured(rows) + grid(head, lines)


def loading(rows: Sequence[Row]) -> str:
    """Each data set: how fast our loader makes batches of it on one core, and a torch DataLoader beside it."""
    lines = []
    for row in rows:
        if row["loader"] != "ours":
            continue
        theirs = [other for other in rows if other["task"] == row["task"] and other["source"] == row["source"]]
        peers = {other["workers"]: f"x {float(other['ratio']):.2f}" for other in theirs if other is not row}
        speed = [f"{int(row[key]):,}" for key in ("examples_per_s", "tokens_per_s")]
        lines.append([f"`{row['task']}`", row["source"], *speed, *(peers[workers] for workers in ("0", "2"))])
    head = ["task", "source", "examples/s", "tokens/s", "DataLoader, in process", "DataLoader, 2 workers"]
    return measured(rows) + grid(head, lines)


def generator(rows: Sequence[Row]) -> str:
    """Each setting of Pathfinder's generator: its speed and its statistics."""
    lines = [
        [
            row["resolution"], row["difficulty"], row["ms_per_image"],
            f"{row['tries']} ± {row['tries_standard_error']}",
            row["nonzero"], row["mean_pixel"], row["distractors"], row["label_1"],
        ]
        for row in rows
    ]  # fmt: skip
    head = ["pixels", "difficulty", "ms an image", "tries", "non-zero", "mean pixel", "distractors", "label 1"]
    return f"{rows[0]['device']}; {int(rows[0]['count']):,} images of each\n\n" + grid(head, lines)


def times(row: Row | None) -> str:
    """The ratio of a row, or why there is none."""
    if row is None:
        return ""
    return f"x {float(row['ratio']):.2f}" if row["result"] == "ok" else row["result"].partition(":")[0]


def share(row: Row | None, key: str) -> str:
    return f"{float(row[key]):.0%}" if row and row[key] else ""


def milliseconds(row: Row | None) -> str:
    return f"{float(row['ms']):.4g} ± {float(row['iqr_ms']):.2g}" if row and row["ms"] else ""


def kernel(rows: Sequence[Row]) -> str:
    """MRA-2 on a CPU: a line for each size, then one for each with its phases."""
    ahead, phases = [], []
    steps = ("choice", "forward"), ("coarse", "forward"), ("block", "forward"), ("block", "backward")
    for at in dict.fromkeys((row["dtype"], row["head_dim"], row["batch"], row["heads"], row["n"]) for row in rows):
        dtype, dim, batch, heads, length = at
        its = {
            (row["work"], row["part"]): row
            for row in rows
            if (row["dtype"], row["head_dim"], row["batch"], row["heads"], row["n"]) == at
        }
        size = [f"{int(length):,}", f"{int(batch) * int(heads)} x {dim}", dtype]
        own, block = its[("mra2", "step")], its.get(("block", "step"))
        ahead.append(
            [
                *size, *(milliseconds(its.get(("mra2", part))) for part in ("forward", "step")),
                *(times(its.get(("sdpa", part))) for part in ("forward", "step")),
                times(its.get(("flex", "forward"))), times(its.get(("flex", "step"))),
                times(its.get(("reference", "step"))), f"x {own['memory_share']}" if own["memory_share"] else "",
            ]
        )  # fmt: skip
        coarse = its.get(("coarse", "backward"))
        phases.append([*size, *(milliseconds(its.get(key)) for key in steps), milliseconds(coarse)])
        phases[-1] += [f"{float(block['gflops']):.0f}" if block else "", share(block, "matmul_share")]
    first = rows[0]
    about = (
        f"{first['device']}; torch {first['torch']}; kernel {first['kernel']} {first['isa']}; commit"
        f" `{first['commit'][:12]}`; {first['date'][:10]}\n\n"
    )
    size = ["N", "B H x D", "dtype"]
    head = ["forward, ms", "step, ms", "softmax, forward", "softmax, step", "Flex, forward", "Flex, step"]
    head += ["reference, step", "memory"]
    names = ["choice", "coarse", "block", "block, backward", "coarse, backward", "block GFLOP/s", "of matmul"]
    return about + grid(size + head, ahead) + "\n" + grid(size + names, phases)


def kernel_cuda(rows: Sequence[Row]) -> str:
    """MRA-2 on a GPU: a line for each size and part, by recorded graphs, with softmax's best backend."""
    lines = []
    keys = ("dtype", "head_dim", "batch", "heads", "n")
    for at in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        dtype, dim, batch, heads, length = at
        its = [row for row in rows if tuple(row[key] for key in keys) == at]
        for part in ("forward", "step"):
            here = {(row["work"], row["mode"]): row for row in its if row["part"] == part}
            softmax = [
                row
                for (work, mode), row in here.items()
                if work.startswith("sdpa ") and mode == "graph" and row["result"] == "ok"
            ]
            best = min(softmax, key=lambda row: float(row["ms"]), default=None)
            eager, block = here.get(("mra2", "eager")), here.get(("block", "graph"))
            lines.append(
                [
                    f"{int(length):,}", f"{int(batch) * int(heads)} x {dim}", dtype, part,
                    milliseconds(here.get(("mra2", "graph"))), milliseconds(eager),
                    eager["launches"] if eager else "", f"{times(best)} {best['work'][5:]}" if best else "",
                    times(here.get(("flex", "graph"))), times(here.get(("reference", "eager"))),
                    share(block, "matmul_share"), share(block, "copy_share"),
                ]
            )  # fmt: skip
    first = rows[0]
    about = (
        f"{first['device']}; driver {first['driver']}; torch {first['torch']}; kernel {first['kernel']}; cache"
        f" {first['cache']}; commit `{first['commit'][:12]}`; {first['date'][:10]}\n\n"
    )
    head = ["N", "B H x D", "dtype", "part", "graph, ms", "eager, ms", "launches", "softmax's best, graph"]
    head += ["Flex, graph", "reference, eager", "block, of matmul", "block, of copy"]
    return about + grid(head, lines)


def steps(rows: Sequence[Row]) -> str:
    """A training step of each attention, kernel and kind of copies."""
    lines = [
        [
            f"`{row['attn']}`", row["kernel"], row["copies"],
            f"{float(row['step_ms']):.0f} ± {float(row['step_iqr_ms']):.0f} ms", f"{float(row['processor_ms']):.0f} ms",
            f"x {float(row['ratio']):.2f}", f"{float(row['forward_ms']):.0f} ms", f"{float(row['backward_ms']):.0f} ms",
            f"{float(row['optimizer_ms']):.0f} ms", f"{float(row['data_ms']):.1f} ms",
            f"{int(row['tokens_per_s']):,}", f"{float(row['peak_mb']):.0f} MiB",
        ]
        for row in rows
    ]  # fmt: skip
    head = ["attention", "kernel", "copies", "step", "processor", "to softmax"]
    head += ["forward", "backward", "optimizer", "data", "tokens/s", "peak"]
    return measured(rows) + grid(head, lines)


def step_parts(rows: Sequence[Row]) -> str:
    """Where the time of a step goes: milliseconds and share of each part, the largest of the last column first."""
    kinds = list(dict.fromkeys((row["attn"], row["kernel"], row["copies"]) for row in rows))
    found = {((row["attn"], row["kernel"], row["copies"]), row["part"]): row for row in rows}
    parts = sorted({row["part"] for row in rows}, key=lambda part: -float(found[kinds[-1], part]["ms"]))
    cells = [[f"{float(found[kind, part]['ms']):.0f} ms, {float(found[kind, part]['share']):.1%}" for kind in kinds]
             for part in parts]  # fmt: skip
    lines = [[part, *row] for part, row in zip(parts, cells, strict=True)]
    return measured(rows) + grid(["part", *(f"`{attn}`, {kernel}, {copies}" for attn, kernel, copies in kinds)], lines)


def loops(rows: Sequence[Row]) -> str:
    """Our training step beside that of a plain loop."""
    lines = []
    for ours in rows:
        if ours["loop"] != "ours":
            continue
        at = (ours["task"], ours["attn"], "plain")
        plain = next(row for row in rows if (row["task"], row["attn"], row["loop"]) == at)
        both = [f"{float(row['examples_per_s']):.2f} ± {float(row['examples_iqr']):.2f}" for row in (ours, plain)]
        memory = [f"{float(row['peak_mb']):,.0f} MiB for {row['batch']}" for row in (ours, plain)]
        places = [f"{int(row['places']):,}" for row in (ours, plain)]
        met = f"x {float(ours['ratio']):.2f}, {'at least' if ours['met'] == 'yes' else 'below'} {ours['bar']}"
        lines.append([ours["task"], ours["data"], f"`{ours['attn']}`", *both, met, *places, *memory])
    head = ["task", "data", "attention", "examples/s, ours", "plain", "ours to plain", "places, ours", "plain"]
    first = rows[0]
    about = f"{first['device']}; torch {first['torch']}, {first['dtype']}, {first['rounds']} rounds; commit"
    about += f" `{first['commit'][:12]}`; {first['date'][:10]}\n\n"
    return about + grid([*head, "peak, ours", "plain"], lines)


def loop_losses(rows: Sequence[Row]) -> str:
    """How far the losses of our loop and of the plain one are apart."""
    lines = []
    for attn in dict.fromkeys(row["attn"] for row in rows):
        mine = [
            LossRow(attn, row["dropout"], int(row["seed"]), int(row["step"]), float(row["ours"]), float(row["plain"]),
                    int(row["threads"]), row["device"], row["torch"], row["commit"], row["date"])
            for row in rows if row["attn"] == attn
        ]  # fmt: skip
        largest, mean, error = differences(mine)
        off = [row.ours for row in mine if row.dropout == "off"]
        lines.append([f"`{attn}`", f"{off[0]:.4f} to {off[-1]:.4f}", f"{largest:.1e}", f"{mean:+.4f} ± {error:.4f}"])
    head = ["attention", "loss, first step to last", "largest difference", "mean difference with dropout"]
    return measured(rows) + grid(head, lines)


def measured(rows: Sequence[Row]) -> str:
    """On what the rows were measured."""
    return f"{rows[0]['device']}; commit `{rows[0]['commit'][:12]}`\n\n"


# The tables of each page: the CSV file of each, and what makes the table of it.
PAGES = {
    "speed.md": {
        "speed": cores,
        "step": steps,
        "step_parts": step_parts,
        "baseline_loop": loops,
        "baseline_loop_losses": loop_losses,
        "peers": peers,
    },
    "data.md": {"pathfinder": generator, "preparing": preparing, "data": loading},
    "kernel.md": {"kernel": kernel, "kernel_cuda": kernel_cuda},
    "studies.md": {
        "studies/beside_leads": pivots.leads,
        "studies/beside_crossover": pivots.crossovers,
        "studies/beside_approximation": pivots.layers,
        "studies/beside_entropy": pivots.smoothed,
        "studies/beside_efficiency": pivots.models,
    },
}


def written(name: str, page: str) -> str:
    """The text of a page with its tables made from the CSV files; ValueError where a mark is missing."""
    for file, table in PAGES[name].items():
        begin, end = BEGIN.format(file), END.format(file)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{name} has no lines {begin.strip()} and {end}")
        results = RESULTS / f"{file}.csv"
        text = table(read(results)) if results.exists() else f"Not measured: there is no `{results.name}`.\n"
        page = f"{before}{begin}{text}{end}{after}"
    return page


def run(options: dict[str, str]) -> int:
    """Write the pages."""
    pages = {name: Path(options["docs"]) / name for name in PAGES}
    texts = {name: written(name, file.read_text(encoding="utf-8")) for name, file in pages.items()}
    for name, file in pages.items():
        write_text(file, texts[name])
        print(f"written: {file}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.tables", "The tables of docs/ from the measured CSV files.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
