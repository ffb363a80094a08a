"""`python -m lra.dashboard`: runs side by side in W&B's terminal view, in trackio's page, or in W&B's browser."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from lra.command import command
from lra.files import write_text
from lra.folders import existing
from lra.words import choose

VIEWS = ("leet", "trackio", "wandb")
KEYS = {
    "view": (
        "leet",
        "leet: W&B's terminal view; trackio: a page in the browser; wandb: a workspace and a report of W&B",
    ),
    "runs": ("runs", "folder of the runs, as tracker_dir had it"),
    "project": ("lra", "W&B's project, for view=wandb"),
    "entity": ("", "W&B's user or team, for view=wandb; empty: the one that the key is of"),
}
SAVE_SECONDS = 60
FIRST_RUN = "make lra task=listops attn=mra2"


def dashboard(options: dict[str, str]) -> int:
    """Open the view that the words name, with a value for each of KEYS; returns the exit code."""
    view = choose("view", options["view"], VIEWS)
    # Reports to W&B's makers look up their server. The switch is read when wandb starts.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if view == "wandb":
        return compare_online(Path(options["runs"]), options["project"], options["entity"])
    root = existing(options["runs"], KEYS["runs"][0])
    if view == "trackio":
        from lra.board import show

        return show(root)
    return leet(root / "wandb")


def leet(folder: Path) -> int:
    """Become W&B's terminal view of all runs in W&B's folder."""
    if not any(folder.glob("*run-*/run-*.wandb")):
        print(f"no W&B runs in {folder} yet: {FIRST_RUN}; make compare shows runs with tracker=jsonl too")
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise OSError("view=leet needs a terminal; make compare prints, view=trackio opens a page")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "wandb", "leet", "run", str(folder.absolute())])


def compare_online(root: Path, project: str, entity: str) -> int:
    """Write the workspace and the report as JSON, and save them online where there is a key."""
    from lra import panels

    files = {name: root / "report" / f"wandb-{name}.json" for name in ("workspace", "report")}
    write_text(files["workspace"], json.dumps(panels.specification(panels.workspace(project)), indent=1) + "\n")
    write_text(files["report"], json.dumps(panels.specification(panels.report(project)), indent=1) + "\n")
    written = " and ".join(str(file) for file in files.values())
    if not has_key():
        print(f"written: {written}; with a key (WANDB_API_KEY or wandb login) the same words save them online")
        return 0
    print(f"written: {written}; saving them online ...", flush=True)
    for line in save_online(project, entity, root / "report" / "wandb-saved.json"):
        print(f"saved: {line}")
    return 0


def has_key() -> bool:
    """Whether W&B would find a key in the environment or in the netrc file."""
    import wandb
    from wandb.sdk.lib import wbauth

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return bool(wbauth.read_netrc_auth(host=wandb.Settings().base_url))


def save_online(project: str, entity: str, known: Path, seconds: float = SAVE_SECONDS) -> list[str]:
    """Save workspace and report, over those saved before where `known` has their ids; returns their addresses.

    OSError where W&B refuses or has not answered after so many seconds.
    """
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(_save(project, entity, known))
        except Exception as error:
            found.append(error)

    # A thread of its own: W&B's calls try again for minutes where there is no network.
    saving = threading.Thread(target=work, name="save", daemon=True)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        saving.start()
        saving.join(seconds)
    answer = found[0] if found else TimeoutError(f"no answer from W&B within {seconds:g} s")
    _stop_service()
    if isinstance(answer, Exception):
        reason = " ".join(str(answer).split()).rstrip(".") or type(answer).__name__
        raise OSError(f"not saved online: {reason}") from answer
    return answer


def _save(project: str, entity: str, known: Path) -> list[str]:
    import wandb

    from lra import panels

    wandb.setup(wandb.Settings(silent=True, quiet=True, console="off", disable_git=True, disable_code=True))
    owner = entity or wandb.Api().default_entity or ""
    workspace, report = panels.workspace(project, owner), panels.report(project, owner)
    before: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        before = json.loads(known.read_text(encoding="utf-8"))
    if before.get("of") == [owner, project]:
        workspace._internal_name, workspace._internal_id = before["workspace"]
        report.id = before["report"]
    for save in (workspace.save, report.save):
        save()
        # After each: what was saved is found again though the next one fails.
        ids = [workspace._internal_name, workspace._internal_id]
        write_text(known, json.dumps({"of": [owner, project], "workspace": ids, "report": report.id}) + "\n")
    return [workspace.url, report.url]


def _stop_service() -> None:
    """End W&B's background process within seconds, whatever it does."""
    from lra.tracker import CLOSE_SECONDS, stop_service

    closing = threading.Thread(target=stop_service, name="save-close", daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("lra.dashboard", "Runs side by side, in the terminal or in the browser.", KEYS, dashboard, words)


if __name__ == "__main__":
    sys.exit(main())
