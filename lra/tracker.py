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
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from wandb import Run

TRACKERS = ("offline", "wandb", "trackio", "jsonl")
QUIET: dict[str, Any] = {"silent": True, "quiet": True, "console": "off", "disable_git": True, "disable_code": True}
CONNECT_SECONDS = 10
FINISH_SECONDS = 30
CLOSE_SECONDS = 3
ROOM = 2**20
CHARTS = {"tokens_per_s": "speed/tokens_per_s", "peak_memory_mb": "memory/peak_mb"}


class Metrics:
    """metrics.jsonl, the record of a run: one JSON object a line, on its way to the disk when `write` returns."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Open `path` for writing behind its first `keep` bytes; what stood after them is cut off.

        A file shorter than `keep` is a ValueError: lines of the record have been lost.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        size = self._file.tell()
        if size < keep:
            self._file.close()
            raise ValueError(
                f"{path} has {size} bytes, but the checkpoint was written at byte {keep}: lines are missing"
            )
        self._file.truncate(keep)
        self._file.seek(keep)

    @property
    def position(self) -> int:
        """Bytes written so far: what a checkpoint stores as `keep`."""
        return self._file.tell()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; NaN and infinities, which JSON does not have, become null."""
        self._file.write(json.dumps(finite(record), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until the disk has every line: before a checkpoint that counts on them."""
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
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {line[:40]!r}") from error


class Tracker(Protocol):
    """A view of the record. Its failures are its own: they never reach the training loop."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show a record of metrics.jsonl."""

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
        "name": name,
        "tags": list(tags),
        "config": dict(config),
    }
    return WandB(kind == "wandb", folder, options, list(history))


class RecordOnly:
    """No view: metrics.jsonl is enough."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        pass


class WandB:
    """A Weights & Biases run, online or as files for `wandb sync` and `wandb leet`.

    Every call happens in a thread of its own, in order: training neither waits for W&B nor hangs with it. A failure
    prints one line and ends the view.
    """

    def __init__(self, online: bool, folder: Path, options: dict[str, Any], history: list[Mapping[str, Any]]) -> None:
        self._online, self._home = online, folder.absolute() / "wandb"
        self._options, self._history = options, history
        self._calls: SimpleQueue[Callable[[Run], None] | None] = SimpleQueue()
        self._lost = self._warned = False
        # Reports to W&B's makers look up their server even offline. The switch is read when wandb is imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._thread = Thread(target=self._work, name="tracker", daemon=True)
        try:
            # Here and not in the thread: two threads that import at once can see modules half made.
            import wandb  # noqa: F401
        except Exception as error:
            self._lose(error)
        else:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        values = {"step": step, **charted(metrics)}
        self._call(lambda run: run.log(values))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the run; return within FINISH_SECONDS + CLOSE_SECONDS, whatever W&B does."""
        self._call(lambda run: run.summary.update(dict(summary)))
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
        """Start online where that is asked for and works, else offline with the history of the run."""
        self._home.mkdir(parents=True, exist_ok=True)
        if not os.access(self._home, os.W_OK):
            # W&B itself would go on in the system's temporary folder, where nobody looks.
            raise PermissionError(f"{self._home} is not writable")
        self._demand_room()
        if self._online:
            try:
                return self._open("online")
            except Exception as error:
                self._warn(error, f"the run goes on offline in {self._home}")
        run = self._open("offline")
        for record in self._history:
            run.log({"step": record["step"], **charted(record)})
        return run

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
    values = {key: value for key, value in metrics.items() if key not in ("step", "split") and value is not None}
    return {CHARTS.get(key, f"{split}/{key}"): value for key, value in values.items()}
