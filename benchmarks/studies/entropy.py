"""`python -m benchmarks.studies.entropy`: error against entropy at equal times, after Zeng et al., 2022 (MRA).

The logits of the same inputs are multiplied by temperatures from 1/16 to 16: their entropy goes from that of uniform
attention to that of a few keys. A budget is a share of the time of exact attention; every variant enters with its
largest configuration within it. The times are those of the approximation study.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rows import choices, whole_number
from benchmarks.studies import approximation
from benchmarks.studies.apart import OK, Say, apart
from benchmarks.studies.budgets import RATIOS, Entry, budgets, enter, share, timed
from benchmarks.studies.cores import Core, Given, rounded
from benchmarks.studies.errors import errors, exact
from benchmarks.studies.inputs import QKV, Size, heated, is_file, take
from benchmarks.studies.ledger import Ledger, Stamp, alone, folder_of, now, stamp, text
from benchmarks.studies.mass import entropies
from benchmarks.studies.standings import NONE, Found, Known, Name, Point, name_of, table
from benchmarks.studies.sweeps import Choice, sweep, swept
from benchmarks.studies.temperatures import covered, gaps_of, heat, temperatures
from lra.command import command
from lra.words import choose

MAIN = "entropy.csv"
# The code on which the rows depend, beside the attentions and the kernels.
MODULES = ("cores", "entropy", "errors", "inputs", "sweeps")
KEYS = {
    "size": ("small", "small: 2 heads, 1 instance; full: 12 heads, 2 instances"),
    "inputs": ("generated", "generated, generated:locality=0.2, files of make qkv or your own; a list with commas"),
    "lengths": ("4096", "tokens N of generated inputs, a list with commas"),
    "attn": ("", "only these variants, a list with commas; without it all that aim at softmax"),
    "against": ("eager,softmax", "whose time is the budget: eager, as in the paper, or softmax, torch's fused one"),
    "budget": ("1,0.5", "shares of that time, a list with commas"),
    "temperatures": ("auto", "what logits are multiplied by, a list with commas; auto: 1/16, 1/8 to 16 and between"),
    "rounds": ("auto", "of the approximation study, where its rows are missing"),
    "device": ("auto", "auto, cpu or cuda"),
    "dtype": ("float32", "float32, bfloat16 or float16"),
    "threads": ("0", "threads on a CPU; 0: torch's own choice"),
    "folder": ("auto", "of the CSV files; auto: benchmarks/results/studies/<machine>"),
    "dry": ("false", "true: only say what would be done, and about how long it takes"),
}
NOTHING: Mapping[Point, Found] = {("", "", ""): ("", "")}
MEASURED = ("temperature", "instance", "head", "entropy", "error")
IDENTITY = ("inputs_sha256", "n", "dtype", "against", "budget", "attn", "temperature", "instance", "head")
# For the plan: seconds that a process takes to start, and that softmax in float64 takes for 4,096 tokens of one head.
STARTING, EXACTLY = 1.5, 0.6


class Row(NamedTuple):
    """A line of entropy.csv: the error of one head at one temperature, under one budget.

    budget     the share of the time of `against`; budget_ms and step_ms are milliseconds of forward + backward of an
               instance, the latter of the configuration (parameter, value) that was taken
    ratio      of its step to one of `against` in the same rounds, by which it is within the budget
    result     "ok", or why there is no error: then the attention has this row alone under the budget
    entropy    nats, the mean of the rows of softmax's weights at this temperature
    error      |out - softmax| / |softmax|
    """

    inputs: str
    inputs_sha256: str
    n: int
    dtype: str
    against: str
    budget: float
    budget_ms: float
    attn: str
    parameter: str
    value: int | None
    step_ms: float | None
    ratio: float | None
    result: str
    temperature: str
    instance: str
    head: str
    entropy: str
    error: str
    device: str
    threads: int | str
    driver: str
    clocks: str
    isa: str
    python: str
    torch: str
    source: str
    commit: str
    date: str


class Asked(NamedTuple):
    """The words, checked. `attn` is empty where none was named, `temperatures` None where they are to be found."""

    attn: list[str]
    against: list[str]
    shares: list[float]
    temperatures: list[float] | None
    dtype: str
    threads: int
    dry: bool
    options: dict[str, str]

    def choices(self, n: int) -> list[Choice]:
        """The configurations at a length: of named attentions all, else of those that aim at softmax."""
        every = [choice for name in self.attn or swept() for choice in sweep(name, n)]
        return [choice for choice in every if self.attn or choice.aims]


class Place(NamedTuple):
    """Where it runs, and where its results stand."""

    machine: Stamp
    device: str
    threads: int
    folder: Path


# By temperature what softmax makes of the heated inputs, (I, H, N, D) float32, and its entropy, (I, H).
Exact = dict[float, tuple[np.ndarray, np.ndarray]]


def run(options: dict[str, str]) -> int:
    """Compute what is missing and print the tables, with a value for each of KEYS; returns the exit code."""
    extent = approximation.SIZES[choose("size", options["size"], tuple(approximation.SIZES))]
    lengths = [whole_number("lengths", word, least=1) for word in options["lengths"].split(",")]
    choose("device", options["device"], ("auto", "cpu", "cuda"))
    if options["rounds"] != "auto":
        whole_number("rounds", options["rounds"], least=1)
    asked = Asked(
        choices("attn", options["attn"], swept()) if options["attn"] else [],
        list(dict.fromkeys(choices("against", options["against"], tuple(RATIOS)))),
        list(dict.fromkeys(share(word) for word in options["budget"].split(","))),
        None if options["temperatures"] == "auto" else temperatures(options["temperatures"]),
        choose("dtype", options["dtype"], ("float32", "bfloat16", "float16")),
        whole_number("threads", options["threads"], least=0),
        choose("dry", options["dry"], ("true", "false")) == "true",
        options,
    )
    sizes = [Size(n, extent.heads, extent.head_dim, extent.instances) for n in dict.fromkeys(lengths)]
    words = dict.fromkeys(options["inputs"].split(","))
    inputs = [(word, take(word, size)) for word in words for size in (sizes[:1] if is_file(word) else sizes)]

    import torch

    from lra.machine import pick_device

    device = pick_device(options["device"]).type
    threads = asked.threads or torch.get_num_threads()
    machine = stamp(device, threads, MODULES)
    folder = folder_of(machine) if options["folder"] == "auto" else Path(options["folder"])
    print(f"{machine.device}, {machine.threads or 1} threads; torch {machine.torch}; {asked.dtype}; {folder}")
    place = Place(machine, device, threads, folder)
    tables = [Study(word, qkv, asked, place).go() for word, qkv in inputs]
    if asked.dry:
        print("nothing computed: dry=true")
        return 0
    print("\n".join(line for lines in tables for line in lines))
    print(f"written: {folder / MAIN}")
    return 0 if all(tables) else 1


class Study:
    """The study of one input."""

    def __init__(self, word: str, qkv: QKV, asked: Asked, place: Place) -> None:
        self.word, self.qkv, self.asked, self.place = word, qkv, asked, place
        self.instances, self.heads, self.n, _ = qkv.q.shape
        self.title = f"{qkv.name}, n {self.n}, {self.instances} x {self.heads} heads"
        # What is known of each configuration, and why others have no errors.
        self.known: Known = {}
        self.failed: dict[Name, str] = {}

    def go(self) -> list[str]:
        """Compute what is missing; the lines of the table, none where there is no budget."""
        print(self.title, flush=True)
        entries = self.enter()
        if not entries:
            return []
        used = self.heat()
        with nullcontext() if self.asked.dry else alone(self.place.folder):
            self.ledger = Ledger(self.place.folder / MAIN, Row, IDENTITY, self.place.machine)
            for row in filter(self.owns, self.ledger.rows.values()):
                if row["result"] == OK:
                    its = self.known.setdefault((row["attn"], row["parameter"], row["value"]), {})
                    its[row["temperature"], row["instance"], row["head"]] = row["entropy"], row["error"]
            self.compute(entries, used)
        return [] if self.asked.dry else table(self.title, entries, self.points(used), self.known, self.failed)

    def owns(self, row: Mapping[str, str]) -> bool:
        """Whether a row is of this input."""
        its = self.qkv.sha256[:12], str(self.n), self.asked.dtype
        return (row["inputs_sha256"], row["n"], row["dtype"]) == its

    def points(self, used: Iterable[float]) -> list[Point]:
        """The names of all points at some temperatures."""
        return [(text(s), name, str(head)) for s in used for name in self.qkv.instances for head in range(self.heads)]

    def enter(self) -> list[Entry]:
        """What enters under each budget; the approximation study goes first where it has not taken its times."""
        file, asked = self.place.folder / approximation.MAIN, self.asked
        wanted = asked.choices(self.n)
        names = list(dict.fromkeys(choice.attn for choice in wanted))
        rows = self.measured()
        have = {(row["attn"], row["parameter"], row["value"]) for row in rows}
        missing = list(dict.fromkeys(choice.attn for choice in wanted if name_of(choice) not in have))
        if missing or not {(name, "", "") for name in asked.against} <= have:
            print(f"{file} lacks times of {', '.join(missing or asked.against)}: the approximation study goes first")
            given = {key: asked.options.get(key, default) for key, (default, _) in approximation.KEYS.items()}
            given |= {"inputs": self.word, "lengths": str(self.n), "attn": ",".join(missing or names)}
            approximation.run(given)
            if asked.dry:
                return []
            rows = self.measured()
        for row in rows:
            if row["attn"] in asked.against and row["result"] != OK:
                print(f"no budget by the time of {row['attn']}: {row['result']}")
        every = timed(rows, wanted, file)
        return [enter(each, name, every) for each in budgets(rows, asked.against, asked.shares, file) for name in names]

    def measured(self) -> list[dict[str, str]]:
        """The rows of approximation.csv of this input, this machine and this source."""
        machine = stamp(self.place.device, self.place.threads, approximation.MODULES)
        ledger = Ledger(self.place.folder / approximation.MAIN, approximation.Row, approximation.IDENTITY, machine)
        return [row for row in ledger.rows.values() if self.owns(row)]

    def heat(self) -> list[float]:
        """The temperatures, with lines on what their points cover."""
        real = self.n if self.qkv.mask is None else int(self.qkv.mask.sum(1).max())
        used, found = heat(lambda s: entropies(heated(self.qkv, s)), real, self.asked.temperatures)
        every = np.concatenate([x.ravel() for x in found.values()])
        told = ", ".join(f"{s:g}" for s in used)
        print(f"temperatures {told}: entropies of {every.min():.2f} to {every.max():.2f} nats")
        if left := ", ".join(f"{low:.2f} to {high:.2f}" for low, high in gaps_of(found, real)):
            low, high = covered(real)
            print(f"  of {low:g} to {high:.2f} nats no point lies near {left}: there is no curve")
        return used

    def compute(self, entries: Sequence[Entry], used: Sequence[float]) -> None:
        """Find the errors that are not known and write the rows, a configuration at a time."""
        by_choice: dict[Choice, list[Entry]] = {}
        for entry in entries:
            if entry.taken is not None:
                by_choice.setdefault(entry.taken.choice, []).append(entry)
        lacking = {
            choice: [s for s in used if not self.known.get(name_of(choice), {}).keys() >= set(self.points([s]))]
            for choice in by_choice
        }
        left = [choice for choice in by_choice if lacking[choice]]
        needed = sorted({s for choice in left for s in lacking[choice]})
        costs = {choice: self.seconds(by_choice[choice][0], len(lacking[choice])) for choice in left}
        exactly = EXACTLY * len(needed) * self.instances * self.heads * (self.n / 4096) ** 2
        print(
            f"{len(by_choice)} configurations, {len(left)} left: about {exactly + sum(costs.values()):.0f} s",
            flush=True,
        )
        if self.asked.dry:
            return
        self.put(entry for entry in entries if entry.taken is None or entry.taken.choice not in left)
        exacts = {s: self.exactly(s) for s in needed}
        begun = time.perf_counter()
        for at, choice in enumerate(left, 1):
            told = self.find(choice, {s: exacts[s] for s in lacking[choice]})
            self.put(by_choice[choice])
            done = sum(costs[each] for each in left[:at])
            rest = (time.perf_counter() - begun) / done * (sum(costs.values()) - done)
            print(f"{at} of {len(left)}: {choice}: {told}; about {rest:.0f} s left", flush=True)

    def seconds(self, entry: Entry, number: int) -> float:
        """The time to expect for a configuration at so many temperatures; a third of a step is forward."""
        assert entry.taken is not None
        return (STARTING if self.place.device == "cpu" else 0) + number * self.instances * entry.taken.ms / 3e3

    def exactly(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        out, entropy = exact(rounded(heated(self.qkv, temperature), self.asked.dtype))
        # Rounded as the outputs that it is compared with are.
        return out.astype(np.float32), entropy

    def find(self, choice: Choice, exacts: Exact) -> str:
        """Compute the errors of a configuration; what came of it, in words."""
        given = choice, self.qkv, exacts, self.asked.dtype, self.place
        found, _, result = apart(head_errors, self.place.device, *given)
        if result != OK:
            self.failed[name_of(choice)] = result
            return result
        its = self.known.setdefault(name_of(choice), {})
        for s, per_head in found.items():
            for (i, head), error in np.ndenumerate(per_head):
                entropy = exacts[s][1][i, head]
                its[text(s), self.qkv.instances[i], str(head)] = text(float(entropy)), text(float(error))
        means = [float(per_head.mean()) for per_head in found.values()]
        return f"error {means[0]:.3g} at temperature {min(found):g}, {means[-1]:.3g} at {max(found):g}"

    def put(self, entries: Iterable[Entry]) -> None:
        """Write the rows of entries in place of those that the same attentions had under the same budgets."""
        rows, replaced = [], set()
        for budget, attn, taken, *_ in entries:
            replaced.add((budget.against, text(budget.share), attn))
            its: Mapping[Point, Found] = {}
            result = NONE
            row: dict[str, Any] = dict(
                inputs=self.qkv.name, inputs_sha256=self.qkv.sha256[:12], n=self.n, dtype=self.asked.dtype,
                against=budget.against, budget=budget.share, budget_ms=budget.ms, attn=attn, parameter="", value=None,
                step_ms=None, ratio=None, **self.place.machine._asdict(), date=now(),
            )  # fmt: skip
            if taken is not None:
                row |= dict(parameter=taken.choice.parameter, value=taken.choice.value, step_ms=taken.ms)
                row["ratio"] = taken.ratios[budget.against]
                its = self.known.get(name_of(taken.choice), {})
                result = OK if its else self.failed[name_of(taken.choice)]
            for point, found in (its or NOTHING).items():
                rows.append(Row(**row | {"result": result} | dict(zip(MEASURED, (*point, *found), strict=True))))
        self.ledger.rows = {
            key: row
            for key, row in self.ledger.rows.items()
            if not (self.owns(row) and (row["against"], row["budget"], row["attn"]) in replaced)
        }
        self.ledger.add(rows)


def head_errors(say: Say, choice: Choice, qkv: QKV, exacts: Exact, dtype: str, place: Place) -> dict[float, np.ndarray]:
    """By temperature the errors (I, H) of a configuration, in the process that calls."""
    import torch

    torch.set_num_threads(place.threads)
    device, found = torch.device(place.device), {}
    for temperature, (out, entropy) in exacts.items():
        hot = rounded(heated(qkv, temperature), dtype)
        core = Core(choice, Given(hot, out, entropy, dtype), device)
        found[temperature] = errors(core.forward(), out, qkv.mask)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    kept = "what is computed is written, the same words go on with the rest"
    return command("benchmarks.studies.entropy", "Error against entropy at equal times.", KEYS, run, words, kept)


if __name__ == "__main__":
    sys.exit(main())
