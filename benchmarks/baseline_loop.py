"""`python -m benchmarks.baseline_loop`: our training step beside that of a plain loop, in turn in one process.

Ours is the real trainer with the recipe of protocol mlpen; the plain loop is benchmarks/plain_loop.py, with the same
weights at the start and the same examples. A step is all of it: data, forward, backward, optimizer and schedule.

Ours takes in each round the batches that stand in the middle of `steps` equal parts of 50, sorted by length, so that
short and long documents have their share. The plain loop pads all to the longest, so that its examples cost the same
whichever they are: in each round it takes one step of as many as go through at once. Those are as many as have at most
256 MiB of scores, features or kernel matrices in a layer: the whole batch, but for softmax. Its optimizer's step is
then counted more often than by accumulation, 1 or 2 ms in seconds.

Then both train the same batches from the same weights (benchmarks/baseline_losses.py).
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.rows import choices, spread, whole_number, write_rows
from benchmarks.speed import high_water
from benchmarks.timed import POOL, Bench, composed, prepared
from lra import data
from lra.command import command
from lra.config import DEVICES
from lra.words import WordError, choose

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.plain_loop import PlainLoop
    from lra.config import Config

TASKS = ("listops", "text")
ATTENTIONS = ("softmax", "nystromformer", "performer", "linformer")
OURS, PLAIN = LOOPS = ("ours", "plain")
BARS = {"softmax": 3.0, "nystromformer": 1.5, "performer": 1.5, "linformer": 1.5}
# Bytes of scores, features or kernel matrices of one layer that go through the plain loop at once.
SCORES = 2**28
# What IMDb's reviews are like: shares of all, and bytes. Few are shorter than the first, and all are cut at 4,000.
REVIEWS = ((0.0, 120), (0.05, 410), (0.25, 700), (0.5, 970), (0.75, 1590), (0.95, 3400), (1.0, 8000))

KEYS = {
    "task": ("", "only these tasks, a list with commas: listops, text"),
    "attn": ("", f"only these attentions, a list with commas: {', '.join(ATTENTIONS)}"),
    "rounds": ("3", "rounds; each takes the steps of both loops once"),
    "steps": ("3", "steps of ours in a round"),
    "threads": ("0", "threads; 0: torch's own choice"),
    "losses": ("40", "steps of the comparison of losses; 0: none"),
    "seeds": ("2", "seeds of its part with dropout"),
    "words": ("", "more words of the runs, with spaces between them"),
    "device": ("cpu", "cpu, cuda or auto"),
    "data_dir": ("runs/.data", "where prepared data are; random documents where the task's are not there"),
    "out": ("benchmarks/results/baseline_loop.csv", "the CSV file; that of the losses is beside it, <name>_losses.csv"),
}  # fmt: skip


class Row(NamedTuple):
    """A line of the CSV file: one loop. Medians over the rounds, of the examples the interquartile range too.

    The ratio is the median over the rounds of this loop's examples a second to the plain one's in the same round.
    `batch` examples make a step, `part` of them go through at once, padded to `places` each on average. Memory in MiB:
    what a step adds to the peak of a fresh process that has built everything.
    """

    task: str
    data: str
    attn: str
    loop: str
    examples_per_s: float
    examples_iqr: float
    ratio: float
    bar: float | str
    met: str
    peak_mb: float
    batch: int
    part: int
    places: int
    rounds: int
    steps: int
    threads: int
    dtype: str
    device: str
    torch: str
    commit: str
    date: str


class Pair(NamedTuple):
    """Both loops of one task and attention, built, and the batches of a round."""

    bench: Bench
    plain: PlainLoop
    order: list[np.ndarray]


def configured(options: dict[str, str], task: str, attn: str) -> Config:
    """The configuration that a run of protocol mlpen has, dropout of softmax's probabilities included."""
    words = [f"{key}={options[key]}" for key in ("device", "data_dir")]
    return composed([f"task={task}", f"attn={attn}", "protocol=mlpen", *words, *options["words"].split()])


def found(config: Config) -> tuple[data.Data, str]:
    """The task's data and what they are; for Text that is not prepared, random bytes in documents as long as IMDb's."""
    from lra.tasks import task

    facts, source = task(config.task), config.task["source"]
    if facts.name != "text" or (data.folder(config.data_dir, facts, source) / "manifest.json").exists():
        return prepared(config)
    made, _ = prepared(config)
    train = reviews(config.train.batch_size * POOL, facts.max_len)
    return made._replace(train=train), "random bytes, IMDb-like lengths (unchecked)"


def reviews(count: int, longest: int) -> data.Split:
    """Random bytes in documents whose lengths are spread evenly over the quantiles of REVIEWS, in random order."""
    import numpy as np

    draws = np.random.default_rng(0)
    shares, lengths = zip(*REVIEWS, strict=True)
    found = np.interp((np.arange(count) + 0.5) / count, shares, lengths).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(draws.permutation(np.minimum(found, longest)))])
    tokens = draws.integers(1, 256, offsets[-1]).astype(np.uint8)
    return data.Split(tokens, offsets, draws.integers(0, 2, count).astype(np.uint8))


def part_of(config: Config) -> int:
    """How many examples go through the plain loop at once."""
    columns = {"nystromformer": "landmarks", "performer": "features", "linformer": "rank"}
    name, size = config.attn["name"], config.model
    wide = config.attn[columns[name]] if name in columns else size.seq_len
    return max(1, min(config.train.batch_size, SCORES // (4 * size.heads * size.seq_len * wide)))


def build(options: dict[str, str], task: str, attn: str, folder: Path) -> Pair:
    """Both loops, with the same weights."""
    from benchmarks.plain_loop import PlainLoop

    config = configured(options, task, attn)
    bench = Bench(config, folder, found(config))
    trainer = bench.trainer
    plain = PlainLoop(
        trainer.model, config, bench.data.train, trainer.max_len, trainer.device, trainer.dtype, part_of(config)
    )
    return Pair(bench, plain, middles(bench, int(options["steps"])))


def middles(bench: Bench, count: int) -> list[np.ndarray]:
    """The batches in the middle of `count` equal parts of the first ones, sorted by their longest document."""
    sampler = bench.trainer.sampler
    batches = sorted((sampler.batch(step) for step in range(POOL)), key=lambda batch: int(sampler.lengths[batch].max()))
    return [batches[(2 * place + 1) * POOL // (2 * count)] for place in range(count)]


def wait(pair: Pair) -> None:
    """Return when the device has done all work."""
    import torch

    if pair.plain.device.type == "cuda":
        torch.cuda.synchronize(pair.plain.device)


def take(pair: Pair, loop: str, order: Sequence[np.ndarray]) -> tuple[float, list[float]]:
    """Train one loop on batches; examples a second, and the loss of each batch."""
    import torch

    torch.use_deterministic_algorithms(loop == OURS, warn_only=True)
    wait(pair)
    began = time.perf_counter()
    if loop == PLAIN:
        losses = [pair.plain.step(batch) for batch in pair.plain.batches(order)]
    else:
        trainer = pair.bench.trainer
        for batch in order:
            trainer.update(batch)
            trainer.state.step += 1
        losses = torch.stack(trainer.pending)[:, 0].tolist()
        trainer.pending.clear()
    wait(pair)
    return sum(map(len, order)) / (time.perf_counter() - began), losses


def plan(pair: Pair, loop: str, turn: int) -> list[np.ndarray]:
    """The batches of a loop's turn."""
    return pair.order if loop == OURS else [pair.order[turn % len(pair.order)][: pair.plain.part]]


def peak_memory(options: dict[str, str], task: str, attn: str, loop: str) -> float:
    """MiB that a first step of the longest batch of a round needs, in a fresh process."""
    import torch

    if options["threads"] != "0":
        torch.set_num_threads(int(options["threads"]))
    with tempfile.TemporaryDirectory() as folder:
        pair = build(options, task, attn, Path(folder) / "run")
        cuda = pair.plain.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(pair.plain.device)
        before = torch.cuda.memory_allocated(pair.plain.device) / 2**10 if cuda else high_water()
        take(pair, loop, plan(pair, loop, -1)[-1:])
        after = torch.cuda.max_memory_allocated(pair.plain.device) / 2**10 if cuda else high_water()
        pair.bench.close()
    return (after - before) / 2**10


def measure(options: dict[str, str], task: str, attn: str, stamp: dict[str, Any]) -> list[Row]:
    """A row for each loop."""
    rounds = int(options["rounds"])
    with tempfile.TemporaryDirectory() as folder:
        pair = build(options, task, attn, Path(folder) / "run")
        trainer = pair.bench.trainer
        for loop in LOOPS:
            take(pair, loop, plan(pair, loop, 0)[-1:])
        speeds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
        for turn in range(rounds):
            for loop in LOOPS:
                speeds[loop].append(take(pair, loop, plan(pair, loop, turn))[0])
        pair.bench.close()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = {loop: pool.submit(peak_memory, options, task, attn, loop).result() for loop in LOOPS}
    lengths = [int(trainer.sampler.lengths[batch].max()) for batch in pair.order]
    bucketed = statistics.mean(min(-(-length // 32) * 32, trainer.max_len) for length in lengths)
    sizes = {
        OURS: (trainer.options.batch_size, trainer.state.micro_batch, round(bucketed), len(pair.order)),
        PLAIN: (pair.plain.part, pair.plain.part, pair.plain.items.length, 1),
    }
    rows = []
    for loop in LOOPS:
        median, between = spread(speeds[loop])
        batch, part, places, steps = sizes[loop]
        ratio = statistics.median(a / b for a, b in zip(speeds[loop], speeds[PLAIN], strict=True))
        bar: float | str = BARS[attn] if loop == OURS else ""
        met = "" if loop == PLAIN else "yes" if ratio >= BARS[attn] else "no"
        rows.append(
            Row(
                task, pair.bench.source, attn, loop, round(median, 3), round(between, 3), round(ratio, 3), bar, met,
                round(peaks[loop], 1), batch, part, places, rounds, steps,
                dtype=str(trainer.dtype).removeprefix("torch."), **stamp,
            )
        )  # fmt: skip
    return rows


def line(row: Row) -> str:
    """A row as it is printed."""
    speed = f"{row.examples_per_s:8.2f} +- {row.examples_iqr:6.2f} examples/s   peak {row.peak_mb:6.0f} MiB"
    size = f"{row.batch} examples of {row.places:,} places, {row.part} at once"
    told = f"   x {row.ratio:.2f}, the bar of {row.bar:g} is {'' if row.met == 'yes' else 'not '}met" if row.met else ""
    return f"{row.task:8} {row.attn:14} {row.loop:6} {speed}   {size}{told}"


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    for key, least in {"rounds": 1, "steps": 1, "threads": 0, "losses": 0, "seeds": 1}.items():
        whole_number(key, options[key], least)
    if options["losses"] in ("1", "2"):
        raise WordError(f"losses={options['losses']} must be 0 or at least 3")
    if int(options["steps"]) > 25:
        raise WordError(f"steps={options['steps']} must be at most 25, half of the batches that they are taken from")
    choose("device", options["device"], DEVICES)
    tasks, attentions = choices("task", options["task"], TASKS), choices("attn", options["attn"], ATTENTIONS)
    if Path(options["out"]).suffix != ".csv":
        raise WordError(f"out={options['out']} must end in .csv")

    import torch

    from benchmarks.baseline_losses import LossRow, compare, told
    from lra.machine import device_name, git_commit, pick_device

    if options["threads"] != "0":
        torch.set_num_threads(int(options["threads"]))
    name = device_name(pick_device(options["device"]))
    stamp: dict[str, Any] = {"threads": torch.get_num_threads(), "device": name, "torch": torch.__version__}
    stamp |= {"commit": git_commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    print(f"{name}; torch {torch.__version__}; commit {stamp['commit'] or 'none'}")
    print(f"protocol mlpen; {options['rounds']} rounds; median +- interquartile range")
    rows: list[Row] = []
    for task in tasks:
        for attn in attentions:
            rows += measure(options, task, attn, stamp)
            print(*map(line, rows[-2:]), sep="\n", flush=True)
            # What has been measured is kept if the rest is not.
            write_rows(options["out"], Row._fields, rows)
    if options["losses"] == "0":
        return 0
    losses: list[LossRow] = []
    for attn in attentions:
        found = compare(options, attn, stamp)
        losses += found
        print(told(found), flush=True)
    write_rows(options["out"].removesuffix(".csv") + "_losses.csv", LossRow._fields, losses)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.baseline_loop", "Our training step beside that of a plain loop.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
