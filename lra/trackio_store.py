"""trackio's folder: runs as points in SQLite files, and its page over them. The only importer of trackio.

Nothing leaves the machine: neither trackio's hubs nor its reports are ever asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lra.words import WordError

# Where trackio would send points to. It reads these and its folder when it is imported, and later.
ELSEWHERE = (
    "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID", "TRACKIO_REGISTRY_BUCKET_ID",
    "TRACKIO_WEBHOOK_URL",
)  # fmt: skip
SILENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
HOST = "127.0.0.1"
# The charts that come first in the page.
ORDER = "test/*,val/accuracy,val/loss,train/accuracy,train/loss"


class StoreError(OSError):
    """trackio's files cannot be used; the message is one line."""


class Point(NamedTuple):
    """What the charts get at one step. `at` is in seconds since 1970, None where it is not known."""

    step: int
    values: Mapping[str, Any]
    at: float | None = None


@dataclass(frozen=True)
class View:
    """A run as trackio shows it. run_id: the same before and after a resume. group: `<protocol>/<task>`.

    final: whether `config` says all that it ever will.
    """

    run_id: str
    group: str
    name: str
    config: Mapping[str, Any]
    final: bool = False

    @property
    def project(self) -> str:
        """Charts lie over each other within a project, so each protocol and task is one: `mlpen-listops`."""
        return self.group.replace("/", "-")

    def key(self, point: Point) -> str:
        """The name under which trackio takes a point once."""
        said = json.dumps([point.step, dict(point.values)], sort_keys=True)
        return f"{self.run_id}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def demand(word: str) -> None:
    """WordError with the way to get trackio, where `word` asks for it and it is not installed."""
    if importlib.util.find_spec("trackio") is None:
        raise WordError(f"{word} needs trackio: make dashboard view=trackio installs it")


class Store:
    """trackio's files in `folder`, one for each project, shared with every other process that writes there.

    Whatever fails is a StoreError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._trackio = imported(self.folder)
        self._sqlite = self._trackio.SQLiteStorage

    @property
    def shared_safely(self) -> bool:
        """Whether several processes may write: SQLite's locks do not hold on network file systems."""
        return self._trackio.utils.get_storage_mode() == "sqlite"

    def hold(self, run: View, read: Callable[[], Sequence[Point]]) -> int:
        """Make what `read` returns all that the run has, return how many points were new. Others of it go.

        It is called after trackio's own points are known: what a run in training adds in between is in both.
        """
        with told(self.folder, run.project):
            there = self._keys(run)
        wanted = {run.key(point): point for point in read()}
        if there - wanted.keys():
            with told(self.folder, run.project):
                if not self._sqlite.delete_run(run.project, run.name, run.run_id):
                    raise OSError("the points of an earlier start could not be removed")
            there = set()
        new = [point for key, point in wanted.items() if key not in there]
        self._add(run, new, run.config if run.final or not there else None)
        return len(new)

    def add(self, run: View, points: Sequence[Point]) -> None:
        """Add points to a run; one that it has already is not taken again."""
        self._add(run, points, run.config if run.final else None)

    def keep(self, project: str, names: Mapping[str, Collection[str]]) -> None:
        """Of the runs with one of these names, keep those whose ids are given."""
        with told(self.folder, project):
            query = "SELECT DISTINCT run_id, run_name FROM metrics"
            for row in self._sqlite.query_project(project, query, max_rows=10**9)["rows"]:
                name, run_id = row["run_name"], row["run_id"]
                if run_id not in names.get(name, {run_id}):
                    self._sqlite.delete_run(project, name, run_id)

    def _add(self, run: View, points: Sequence[Point], config: Mapping[str, Any] | None) -> None:
        now = datetime.now(UTC).timestamp()
        times = [now if point.at is None else point.at for point in points]
        with told(self.folder, run.project):
            self._sqlite.bulk_log(
                project=run.project,
                run=run.name,
                run_id=run.run_id,
                metrics_list=[dict(point.values) for point in points],
                steps=[point.step for point in points],
                timestamps=[datetime.fromtimestamp(time, UTC).isoformat() for time in times],
                log_ids=[run.key(point) for point in points],
                config=None if config is None else {**config, "_Group": run.group},
            )

    def _keys(self, run: View) -> set[str]:
        """The keys of the points that the run has."""
        assert run.run_id.isalnum(), "a run's id is a hash"
        query = f"SELECT log_id FROM metrics WHERE run_id = '{run.run_id}'"
        # A file that another process has just made may have no tables yet.
        self._sqlite.init_db(run.project)
        rows = self._sqlite.query_project(run.project, query, max_rows=10**9)["rows"]
        return {str(row["log_id"]) for row in rows}

    def serve(self, project: str, port: int) -> tuple[str, Callable[[], None]]:
        """Serve trackio's page to this machine alone; its address at `project`, and what ends it.

        port: 0 takes a free one. One that is taken is an OSError.
        """
        os.environ.setdefault("TRACKIO_PLOT_ORDER", ORDER)
        # trackio asks its own server whether it answers; a proxy would be asked in its place.
        os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy", ""), HOST]))
        # It prints lines of its own, with a token that the page does not need here.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                server, url, _, _ = self._trackio.show(
                    host=HOST, server_port=port or None, share=False, mcp_server=False,
                    open_browser=False, block_thread=False,
                )  # fmt: skip
            except OSError:
                taken = f"port={port} of {HOST} is taken" if port else f"{HOST} has no free port from 7860 on"
                raise StoreError(f"{taken}; choose another one") from None
        return f"{url}?project={project}&smoothing=0", server.close


@contextlib.contextmanager
def told(folder: Path, project: str) -> Iterator[None]:
    """Say of what trackio raises, sqlite3's errors among it, whose file it was."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(f"{folder / project}.db: {said}") from error


def imported(folder: Path) -> ModuleType:
    """trackio with its files in `folder`. It can be in one folder in each process."""
    os.environ.update(SILENT, TRACKIO_DIR=str(folder))
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    import trackio

    if folder != trackio.TRACKIO_DIR:
        raise StoreError(f"trackio writes to {trackio.TRACKIO_DIR} in this process already, not to {folder}")
    return trackio
