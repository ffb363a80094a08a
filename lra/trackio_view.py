"""tracker=trackio: a run in trackio's files while it trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from lra.trackio_store import Point, Store, View

# Points wait so long for others to be written with them.
TOGETHER_SECONDS = 0.5
FINISH_SECONDS = 15


class TrackioView:
    """A trackio run, written in a thread of its own: training neither waits for trackio nor fails with it.

    chart: names a record's values as its charts are named. history: the records written before a resume; they are all
    that the run then has, so that steps which are repeated stand there once.
    """

    def __init__(
        self,
        folder: Path,
        run: View,
        history: Iterable[Mapping[str, Any]],
        chart: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        self._run, self._chart = run, chart
        self._last = 0
        self._history = [self._point(record["step"], record, None) for record in history]
        self._points: SimpleQueue[Point | Mapping[str, Any]] = SimpleQueue()
        self._thread = Thread(target=self._work, name="tracker", daemon=True)
        try:
            # Here and not in the thread: two threads that import at once can see modules half made.
            self._store = Store(folder / "trackio")
        except Exception as error:
            self._lose(error)
        else:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._points.put(self._point(step, metrics, time.time()))

    def tables(self, tables: Mapping[str, Any]) -> None:
        """Not shown: predictions.npz has every row."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write what is left; return within FINISH_SECONDS, whatever trackio does."""
        self._points.put(dict(summary))
        if not self._thread.ident:
            return
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._lose(TimeoutError(f"trackio did not finish within {FINISH_SECONDS} s"))

    def _point(self, step: int, metrics: Mapping[str, Any], at: float | None) -> Point:
        self._last = step
        return Point(step, self._chart(metrics), at)

    def _work(self) -> None:
        try:
            if not self._store.shared_safely:
                raise OSError(f"{self._store.folder} is on a network file system, where SQLite has one writer at most")
            self._store.hold(self._run, lambda: self._history)
            while True:
                points, summary = self._taken()
                self._store.add(self._run, points)
                if summary is not None:
                    break
            run = concluded(self._run, summary)
            self._store.add(run, [end(summary, self._last)])
        except Exception as error:
            self._lose(error)

    def _taken(self) -> tuple[list[Point], Mapping[str, Any] | None]:
        """What came within TOGETHER_SECONDS of the first point that was waited for, and the summary if it was there."""
        points: list[Point] = []
        item = self._points.get()
        until = time.monotonic() + TOGETHER_SECONDS
        while True:
            if not isinstance(item, Point):
                return points, item
            points.append(item)
            try:
                item = self._points.get(timeout=max(until - time.monotonic(), 0))
            except Empty:
                return points, None

    def _lose(self, error: Exception) -> None:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        outcome = "the run goes on without it; make dashboard view=trackio shows it from its metrics.jsonl"
        print(f"warning: tracker=trackio: {reason}; {outcome}", file=sys.stderr, flush=True)


def concluded(run: View, summary: Mapping[str, Any]) -> View:
    """A run at its end: what stands for the whole of it is in its configuration."""
    return replace(run, config={**run.config, **summary}, final=True)


def end(summary: Mapping[str, Any], step: int, at: float | None = None) -> Point:
    """The accuracies of a whole run, as charts of one point each, which trackio draws as bars."""
    return Point(step, {key: value for key, value in summary.items() if key.endswith("accuracy")}, at)
