"""What a run writes down while it trains: metrics.jsonl always, Weights & Biases as a view of it."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from lra.files import naming

if TYPE_CHECKING:
    from wandb import Run

TRACKERS = ("offline", "wandb", "trackio", "jsonl")
QUIET: dict[str, Any] = {"silent": True, "quiet": True, "console": "off", "disable_git": True, "disable_code": True}
CONNECT_SECONDS = 10
FINISH_SECONDS = 30
CLOSE_SECONDS = 3
ROOM = 2**20
CHARTS = {"tokens_per_s": "speed/tokens_per_s", "peak_memory_mb": "memory/peak_mb", "seconds": "time/seconds"}
# What says which line of the record it is, or is the same in every line.
UNCHARTED = ("step", "steps", "split")
# Of each curve, what a run is judged by: W&B shows it as `val/accuracy.max` beside `val/accuracy.last`.
BEST = {"train/loss": "min", "val/loss": "min", "train/accuracy": "max", "val/accuracy": "max"}


class Metrics:
    """metrics.jsonl, the record of a run: one JSON object a line, on its way to the disk when `write` returns."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Open `path` for writing behind its first `keep` bytes; what stood after them is cut off.

        A file shorter than `keep` is a ValueError: lines of the record have been lost.
        """
        self._path = path
        self._file = path.open("ab")
        size = self._file.tell()
        if size < keep:
            self._file.close()
            raise ValueError(
                f"{path} has {size} bytes, but the checkpoint was written at byte {keep}: lines are missing"
            )
        with naming(path):
            self._file.truncate(keep)
            self._file.seek(keep)

    @property
    def position(self) -> int:
        """Bytes written so far: what a checkpoint stores as `keep`."""
        return self._file.tell()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; NaN and infinities, which JSON does not have, become null."""
        line = json.dumps(finite(record), allow_nan=False).encode() + b"\n"
        with naming(self._path):
            self._file.write(line)
            self._file.flush()

    def sync(self) -> None:
        """Wait until the disk has every line: before a checkpoint that counts on them."""
        with naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with None for each float that is NaN or infinite."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl, none if there is no file; a last line that was cut short is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is not JSON: {line[:40]!r}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number} is not a record: {line[:40]!r}")
            yield record


class Table(NamedTuple):
    """Rows of numbers, texts and None under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


class Tracker(Protocol):
    """A view of the record. Its failures are its own: they never reach the training loop."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show a record of metrics.jsonl."""

    def tables(self, tables: Mapping[str, Table]) -> None:
        """Show tables by their names; once, before `finish`."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the view with the values that stand for the whole run."""


def open_tracker(
    kind: str,
    folder: Path,
    run_id: str,
    project: str,
    group: str,
    name: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
    history: Iterable[Mapping[str, Any]],
) -> Tracker:
    """Open the tracker `kind`, one of TRACKERS.

    folder: where W&B keeps its own folder, one for all runs. run_id: the same before and after a resume.
    history: the records written before a resume, so that an offline run holds the whole curve.
    """
    if kind == "jsonl":
        return RecordOnly()
    if kind == "trackio":
        # Here, so that only who asks for it needs trackio.
        from lra.trackio_store import View
        from lra.trackio_view import TrackioView

        return TrackioView(folder, View(run_id, group, name, dict(config)), history, charted)
    options = {
        "id": run_id,
        "project": project,
        "group": group,
        "job_type": "train",
        "name": name,
        "tags": list(tags),
        "config": dict(config),
    }
    return WandB(kind == "wandb", folder, options, list(history))


class RecordOnly:
    """No view: metrics.jsonl is enough."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    def tables(self, tables: Mapping[str, Table]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        pass


class WandB:
    """A Weights & Biases run, online or as files for `wandb sync` and `wandb leet`.

    Under an agent of W&B (WANDB_SWEEP_ID) the agent's id and project stand in place of ours, by W&B's own rule.

    Every call happens in a thread of its own, in order: training neither waits for W&B nor hangs with it. A failure
    prints one line and ends the view.
    """

    def __init__(self, online: bool, folder: Path, options: dict[str, Any], history: list[Mapping[str, Any]]) -> None:
        self._online, self._home = online, folder.absolute() / "wandb"
        self._options, self._history = options, history
        self._calls: SimpleQueue[Callable[[Run], None] | None] = SimpleQueue()
        self._lost = self._warned = False
        # The last step of this run that the server had when it was opened: what came before it is not sent again.
        self._known = -1
        # Reports to W&B's makers look up their server even offline. The switch is read when wandb is imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Where tables wait for `wandb sync`: beside the runs, not in the user's home.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._home / "staged"))
        self._thread = Thread(target=self._work, name="tracker", daemon=True)
        try:
            # Here and not in the thread: two threads that import at once can see modules half made.
            import wandb  # noqa: F401
        except Exception as error:
            self._lose(error)
        else:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._call(lambda run: self._show(run, step, metrics))

    def tables(self, tables: Mapping[str, Table]) -> None:
        def show(run: Run) -> None:
            import wandb

            try:
                made = {
                    name: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
                    for name, table in tables.items()
                }
                # Not logged: terminal views draw the numbers of rows and columns as curves.
                run.summary.update(made)
            except Exception as error:
                self._warn(error, "the tables are left out, predictions.npz holds every row")

        self._call(show)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the run; return within FINISH_SECONDS + CLOSE_SECONDS, whatever W&B does."""
        self._call(lambda run: run.summary.update(finite(summary)))
        self._call(lambda run: run.finish(exit_code=exit_code))
        if not self._thread.ident:
            return
        self._calls.put(None)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._lose(TimeoutError(f"W&B did not finish within {FINISH_SECONDS} s"))
        closing = Thread(target=stop_service, name="tracker-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _call(self, call: Callable[[Run], None]) -> None:
        if not self._lost:
            self._calls.put(call)

    def _work(self) -> None:
        try:
            run = self._start()
            while call := self._calls.get():
                self._demand_room()
                call(run)
        except Exception as error:
            self._lose(error)

    def _demand_room(self) -> None:
        """W&B's process says nothing when it cannot write; an OSError here does."""
        free = shutil.disk_usage(self._home).free
        if free < ROOM:
            raise OSError(f"{self._home} has {free:,} bytes left on its disk")

    def _lose(self, error: Exception) -> None:
        self._lost = True
        self._warn(error, "the run goes on without it, metrics.jsonl holds every line")

    def _warn(self, error: Exception, outcome: str) -> None:
        """One line on stderr for the first failure; what fails after it is its consequence."""
        if not self._warned:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            line = f"warning: tracker={'wandb' if self._online else 'offline'}: {reason}; {outcome}"
            print(line, file=sys.stderr, flush=True)
        self._warned = True

    def _start(self) -> Run:
        """Start online where that is asked for and works, else offline; either way the run has its whole history."""
        self._home.mkdir(parents=True, exist_ok=True)
        if not os.access(self._home, os.W_OK):
            # W&B itself would go on in the system's temporary folder, where nobody looks.
            raise PermissionError(f"{self._home} is not writable")
        self._demand_room()
        if self._online:
            try:
                run = self._open("online")
            except Exception as error:
                self._warn(error, f"the run goes on offline in {self._home}")
            else:
                last = run.summary.get("step") if run.resumed else None
                self._known = last if isinstance(last, int) else -1
                self._replay(run)
                return run
        elif os.environ.get("WANDB_SWEEP_ID"):
            self._warn(
                ValueError("WANDB_SWEEP_ID is set"), "the sweep hears nothing of this run, tracker=wandb tells it"
            )
        run = self._open("offline")
        self._replay(run)
        self._put_aside(run)
        return run

    def _replay(self, run: Run) -> None:
        for record in self._history:
            self._show(run, record["step"], record)

    def _show(self, run: Run, step: int, metrics: Mapping[str, Any]) -> None:
        # A step has several records: the last known one may not be whole.
        if step >= self._known:
            run.log({"step": step, **charted(metrics)})

    def _put_aside(self, run: Run) -> None:
        """Move what earlier starts of this run wrote out of the way: `run` has all of their curves.

        They belong to processes that have ended: a run's directory has one process, and the id is the directory's.
        """
        for folder in self._home.glob(f"offline-run-*-{run.id}"):
            if folder not in Path(run.dir).parents:
                aside = self._home / "superseded"
                aside.mkdir(exist_ok=True)
                folder.rename(aside / folder.name)

    def _open(self, mode: Literal["online", "offline"]) -> Run:
        import wandb

        # `silent` must hold for the process before W&B looks for a key, or it asks for one on a terminal.
        wandb.setup(wandb.Settings(**QUIET))
        settings = wandb.Settings(**QUIET, mode=mode, root_dir=str(self._home.parent))
        resume: Literal["allow"] | None = None
        if mode == "online":
            settings.init_timeout, resume = CONNECT_SECONDS, "allow"
        run = wandb.init(**self._options, settings=settings, reinit="create_new", resume=resume)
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        for name, best in BEST.items():
            run.define_metric(name, step_metric="step", summary=f"{best},last")
        return run


def stop_service() -> None:
    """End W&B's background process and take back its exit hook, which can hang or print a traceback."""
    import wandb

    # The runs are closed by now, or their failure has been told.
    with suppress(Exception, SystemExit):
        wandb.teardown()


def charted(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A record under the names of its charts: `train/loss`, `val/accuracy`, `speed/tokens_per_s`."""
    split = metrics.get("split", "run")
    values = {key: value for key, value in metrics.items() if key not in UNCHARTED and value is not None}
    return {CHARTS.get(key, f"{split}/{key}"): value for key, value in values.items()}
