"""`python -m lra.watch`: the runs under way in the terminal, read from their metrics.jsonl. It writes nothing."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lra.command import command
from lra.screen import draw
from lra.underway import Snapshot, UnderWay
from lra.words import WordError, choose, nearest

KEYS = {
    "runs": ("runs", "folder of the runs"),
    "task": ("", "only these tasks, a list with commas"),
    "attn": ("", "only these attentions"),
    "protocol": ("", "only these protocols"),
    "every": ("2", "seconds between two looks"),
    "once": ("false", "true: print how things stand and end, as without a terminal"),
}
# Seconds within which the screen follows a new size of the window.
BLINK = 0.25


def watch(options: Mapping[str, str]) -> int:
    """Show what is under way, with a value for each of KEYS, until q or Ctrl-C; returns the exit code."""
    every = seconds_of(options["every"])
    once = choose("once", options["once"], ("true", "false")) == "true"
    root = Path(options["runs"])
    if root.exists() and not root.is_dir():
        raise WordError(f"runs={root} is not a folder")
    wanted = {key: frozenset(options[key].split(",")) for key in ("protocol", "task", "attn") if options[key]}
    under_way = UnderWay(root, wanted)
    console = Console(highlight=False)
    if once or not console.is_terminal or console.is_dumb_terminal:
        shot = under_way.read(time.time())
        width = console.width if console.is_terminal else None
        for line in draw(shot, width, None, nothing(shot, root, wanted), console.options.ascii_only):
            console.print(line, soft_wrap=True)
        return 0
    follow(under_way, console, every, root, wanted)
    return 0


def seconds_of(word: str) -> float:
    """The value of `every`: a number of seconds."""
    try:
        every = float(word)
    except ValueError:
        every = 0.0
    if not 0.1 <= every <= 86400:
        raise WordError(f"every={word} must be seconds from 0.1 to 86400")
    return every


def nothing(shot: Snapshot, root: Path, wanted: Mapping[str, frozenset[str]]) -> str:
    """The line that stands where no run is under way."""
    words = " ".join(f"{key}={','.join(sorted(names))}" for key, names in wanted.items())
    where = f"{root}{' of ' + words if words else ''}"
    if not root.is_dir():
        return f"no runs under way: there is no folder {root} yet; make lra task=listops attn=mra2"
    for key, names in wanted.items():
        for name in sorted(names - shot.seen[key]):
            return f"no runs under way in {where}: none has {key}={name}{nearest(name, shot.seen[key])}"
    return f"no runs under way in {where}; make lra task=listops attn=mra2"


def follow(
    under_way: UnderWay, console: Console, every: float, root: Path, wanted: Mapping[str, frozenset[str]]
) -> None:
    """Look again and again, and draw again where the window has another size."""
    # Noted here, answered by the loop: an exception out of a handler is lost where an object is just being deleted.
    asked: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, frame: asked.append(number))
    with keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while not asked:
            shot = under_way.read(time.time())
            due, size = time.monotonic() + every, None
            while not asked and (rest := due - time.monotonic()) > 0:
                if console.size != size:
                    size = console.size
                    said, plain = nothing(shot, root, wanted), console.options.ascii_only
                    lines = draw(shot, size.width, size.height - 1, said, plain)
                    live.update(Group(*lines, Text("q leaves", style="dim")), refresh=True)
                if pressed(min(rest, BLINK)) in ("q", "Q", "\x03"):
                    return
    if asked[0] != signal.SIGINT:
        raise SystemExit(128 + asked[0])


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key and returns it, empty where none came.

    Keys arrive at once and unseen while the context lasts. Without a terminal to type on there are none.
    """
    if not sys.stdin.isatty():
        yield wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def key(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        # The end of the input is a terminal that has gone.
        return (os.read(descriptor, 1).decode(errors="replace") or "q") if ready else ""

    tty.setcbreak(descriptor)
    try:
        yield key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("lra.watch", "The runs under way, in the terminal.", KEYS, watch, words)


if __name__ == "__main__":
    sys.exit(main())
