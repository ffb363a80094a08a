"""`make bench name=soak`: hours in the life of the harness, in minutes: does anything grow, does anything slow down?

One run trains all the time, with checkpoints, evaluations and W&B offline, and `make watch` follows it in a terminal of
its own. Beside them a loop of rounds: a sweep of two runs, the same sweep again, the table with its page, the curves;
what a round made is removed at its end. Memory, open files, threads and the disk are sampled all along; the first and
the last ninth of the time (5 of 45 minutes) are set against each other.
"""

from __future__ import annotations

import json
import os
import platform
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rows import whole_number, write_rows
from benchmarks.soaked import Sample, draw, verdicts
from lra.command import command
from lra.commit import git_commit

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "minutes": ("45", "how long"),
    "every": ("15", "seconds between two samples"),
    "pause": ("20", "seconds between two rounds"),
    "attn": ("mra2", "the attention that trains all the time"),
    "out": ("benchmarks/results/soak.csv", "the CSV file"),
    "figure": ("docs/soak.svg", "the picture"),
}
SMALL = ("task=listops", "task.source=synthetic", "device=cpu")
LONG = (
    "model.seq_len=256", "train.batch_size=8", "train.steps=100000000", "train.warmup=1000", "train.eval_every=1000",
    "train.checkpoint_every=200", "train.log_every=20", "tracker=offline",
)  # fmt: skip
SHORT = (
    "attn=mra2,linformer", "model.seq_len=64", "train.steps=30", "train.warmup=5", "train.batch_size=8",
    "train.eval_every=15", "train.checkpoint_every=5", "train.log_every=5",
)  # fmt: skip


class Broken(Exception):
    """A command of the soak ended as it should not; the message is the line that says so."""


class Rounds:
    """What short commands do, again and again, until `stop`."""

    def __init__(self, work: Path, environ: Mapping[str, str], pause: int = 0) -> None:
        self.work, self.environ, self.pause = work, environ, pause
        self.count, self.seconds, self.mb, self.handles, self.left = 0, 0.0, 0.0, 0, 0
        self.failure = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go, name="rounds")

    def __enter__(self) -> Rounds:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _go(self) -> None:
        try:
            while not self._stop.wait(self.pause):
                self._round()
        except Broken as broken:
            self.failure = str(broken)

    def _round(self) -> None:
        start, peak, most = time.monotonic(), 0.0, 0
        folder = self.work / "round"
        folder.mkdir()
        sweep = ("lra.sweep", *SMALL, *SHORT, f"data_dir={self.work / 'data'}", "tracker=jsonl", "threads=1")
        for words in (sweep, ("lra.results",), sweep, ("lra.report",), ("lra.results",)):
            mb, handles = self._command(words)
            peak, most = max(peak, mb), max(most, handles)
            if self._stop.is_set():
                return
        results = len(list(folder.rglob("result.json")))
        if results != 2:
            raise Broken(f"a round has {results} results, two were asked for")
        shutil.rmtree(folder)
        self.left = sum(1 for path in self.work.iterdir() if path.name not in PARTS)
        self.count, self.seconds, self.mb, self.handles = self.count + 1, time.monotonic() - start, peak, most

    def _command(self, words: Sequence[str]) -> tuple[float, int]:
        """Run a command to its end: the largest memory and number of handles of it and of what it started."""
        log = self.work / "tmp" / "round.log"
        peak, most = 0.0, 0
        with log.open("w") as said:
            process = started(words, self.work / "round", self.environ, said)
            while process.poll() is None:
                if self._stop.wait(0.2):
                    process.terminate()
                    process.wait()
                    return peak, most
                mb, handles, _ = held(process.pid, whole=True)
                peak, most = max(peak, mb), max(most, handles)
        if process.returncode:
            line = (log.read_text().splitlines() or ["nothing"])[-1]
            raise Broken(f"python -m {' '.join(words)} ended with code {process.returncode}: {line}")
        log.unlink()
        return peak, most


# What belongs into the folder of the soak.
PARTS = ("data", "runs", "view", "tmp", "round", "long.log")


def started(words: Sequence[str], folder: Path, environ: Mapping[str, str], said: Any) -> subprocess.Popen[bytes]:
    """`python -m <words>` in a folder; what it says goes to the file `said`."""
    process = [sys.executable, "-m", *words]
    return subprocess.Popen(process, cwd=folder, env=dict(environ), stdin=subprocess.DEVNULL, stdout=said, stderr=said)


def held(pid: int, whole: bool = False, beside: bool = False) -> tuple[float, int, int]:
    """Memory in MB, handles and threads of a process; with `whole` of its descendants too, `beside`: of these alone."""
    mb, handles, threads = 0.0, 0, 0
    try:
        process = psutil.Process(pid)
        them = [*([] if beside else [process]), *(process.children(recursive=True) if whole or beside else [])]
    except psutil.NoSuchProcess:
        return mb, handles, threads
    for each in them:
        try:
            with each.oneshot():
                mb += each.memory_info().rss / 1e6
                handles += each.num_fds()
                threads += each.num_threads()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            # It ended between the list and the look.
            continue
    return mb, handles, threads


def size(folder: Path) -> float:
    """What a file or the files below a folder hold, MB."""
    total = 0
    for path in [folder, *folder.rglob("*")]:
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            # A temporary file that has just taken its place.
            continue
    return total / 1e6


def long_run(work: Path, attn: str) -> Path:
    """Where the run is that trains all the time."""
    return work / "runs" / "mlpen" / "listops" / attn / "seed0"


@contextmanager
def training(work: Path, attn: str, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The run that goes on all the time; at the end it is asked to stop, and must have saved everything."""
    places = f"data_dir={work / 'data'}", f"run_dir={long_run(work, attn)}", f"tracker_dir={work / 'view'}"
    with (work / "long.log").open("w") as said:
        process = started(("lra.train", *SMALL, *LONG, f"attn={attn}", *places), work, environ, said)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()
    if process.returncode != 128 + signal.SIGTERM:
        line = ((work / "long.log").read_text().splitlines() or ["nothing"])[-1]
        raise Broken(f"the run that trains all the time ended with code {process.returncode}: {line}")


@contextmanager
def watching(work: Path, environ: Mapping[str, str]) -> Iterator[int]:
    """`make watch` in a terminal of its own; its process number."""
    pid, terminal = pty.fork()
    if pid == 0:
        words = [sys.executable, "-m", "lra.watch", f"runs={work / 'runs'}", "every=1"]
        os.execve(sys.executable, words, {**environ, "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"})

    def drain() -> None:
        # Ends with an error where the other side is gone.
        try:
            while os.read(terminal, 1 << 16):
                pass
        except OSError:
            return

    reader = threading.Thread(target=drain, name="terminal", daemon=True)
    reader.start()
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
        os.close(terminal)


def progress(record: Path) -> tuple[int, float]:
    """The last step of a metrics.jsonl and the seconds that the run had taken by then."""
    with record.open("rb") as file:
        file.seek(max(record.stat().st_size - 4096, 0))
        lines = file.read().splitlines()[:-1]
    last = json.loads(lines[-1]) if len(lines) > 1 else {}
    return last.get("step", 0), last.get("seconds", 0.0)


def soak(minutes: int, every: int, pause: int, attn: str, tell: Callable[[str], None]) -> list[Sample]:
    """Let everything run for so long; a sample each `every` seconds. Raises Broken where a command fails."""
    samples: list[Sample] = []
    facts = attn, processor(), platform.python_version(), torch_version(), git_commit()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, ExitStack() as held_open:
        work = Path(folder)
        (work / "tmp").mkdir()
        one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        environ = {**os.environ, **one, "TMPDIR": str(work / "tmp"), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        long = held_open.enter_context(training(work, attn, environ))
        record = long_run(work, attn) / "metrics.jsonl"
        tell("waiting for the first steps")
        while not record.exists() or progress(record)[0] < 100:
            if long.poll() is not None:
                raise Broken(f"the run ended before its first steps: {(work / 'long.log').read_text().strip()}")
            time.sleep(0.5)
        watch = held_open.enter_context(watching(work, environ))
        rounds = held_open.enter_context(Rounds(work, environ, pause))
        start, (step, clock), busy = time.monotonic(), progress(record), processor_seconds(long.pid)
        while (now := time.monotonic() - start) < 60 * minutes:
            time.sleep(max(start + every * (len(samples) + 1) - time.monotonic(), 0))
            now = time.monotonic() - start
            if rounds.failure or long.poll() is not None:
                break
            (before, earlier, used), (step, clock) = (step, clock, busy), progress(record)
            busy = processor_seconds(long.pid)
            mb, handles, threads = held(long.pid)
            beside_mb, beside_handles, _ = held(long.pid, beside=True)
            watch_mb, watch_handles, _ = held(watch)
            if step == before:
                raise Broken(f"no step was recorded within {every} s")
            count = step - before
            sample = Sample(
                round(now, 1), step, round(count / (clock - earlier), 3), round(1e3 * (busy - used) / count, 3),
                round(mb, 1), handles, threads, round(beside_mb, 1), beside_handles, round(watch_mb, 1), watch_handles,
                rounds.count, round(rounds.seconds, 1), round(rounds.mb, 1), rounds.handles,
                round(size(record.parent / "checkpoint"), 3), round(size(record), 3), round(size(work / "view"), 3),
                round(size(work / "data"), 3), sum(1 for _ in (work / "tmp").rglob("*")), rounds.left, *facts,
            )  # fmt: skip
            samples.append(sample)
            tell(
                f"{now / 60:5.1f} of {minutes} min: {sample.steps_per_s:.1f} steps/s, {sample.trainer_mb:.0f} MB, "
                f"{sample.trainer_handles} handles, {sample.rounds} rounds"
            )
        if rounds.failure:
            raise Broken(rounds.failure)
    return samples


def processor_seconds(pid: int) -> float:
    """Time that a process has computed."""
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return used.user + used.system


def processor() -> str:
    """The name of the processor, with its cores."""
    import torch

    from lra.machine import device_name

    return f"{device_name(torch.device('cpu')).rpartition(', ')[0]}, {os.cpu_count()} cores"


def torch_version() -> str:
    import torch

    return torch.__version__


def run(options: dict[str, str]) -> int:
    """Soak, write, draw and judge, with a value for each of KEYS; returns the exit code."""
    minutes = whole_number("minutes", options["minutes"], least=1)
    every = whole_number("every", options["every"], least=1)
    pause = whole_number("pause", options["pause"], least=0)
    if 60 * minutes < 18 * every:
        raise ValueError(f"every={every} gives fewer than 18 samples in {minutes} min")
    try:
        samples = soak(minutes, every, pause, options["attn"], lambda line: print(line, flush=True))
    except Broken as broken:
        print(f"error: {broken}", file=sys.stderr)
        return 1
    write_rows(options["out"], Sample._fields, samples)
    draw(samples, Path(options["figure"]))
    print(f"written: {options['figure']}")
    share = f"{samples[-1].seconds / 60 / 9:.1f} minutes"
    print(f"{'':16} {'first':>10} {'last':>10} {'change':>7}  medians of the first and the last {share}")
    print("\n".join(verdicts(samples)))
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    summary = "Training, sweeping and comparing for a long time: what grows, what slows down."
    return command("benchmarks.soak", summary, KEYS, run, words, "everything that was started has been stopped")


if __name__ == "__main__":
    sys.exit(main())
