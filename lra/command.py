"""The command line of a module: `key=value` words, `--help` in the usual form, errors in one line."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import NoReturn

from lra.words import line_of, one_line, parse


def answer_signals() -> None:
    """Let SIGINT and SIGTERM end this process with one line and 128 + n, whatever it does, until it says otherwise.

    For the first line of a command: what it imports may take a second.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(128 + number)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)}\n")


def command(
    module: str,
    summary: str,
    keys: Mapping[str, tuple[str, str]],
    work: Callable[[dict[str, str]], int],
    words: Sequence[str] | None = None,
    interrupted: str = "",
) -> int:
    """Run `work` on the words of `python -m <module>` and return the exit code.

    `keys` maps each known key to its default and its line of help. A ValueError (WordError is one) ends with code 2,
    an OSError with 1, Ctrl-C with 130, each in one line; `interrupted` says what Ctrl-C leaves behind.
    """
    width = max(map(len, keys)) + 1
    lines = [f"  {key + '=':{width}}  {line} (default: {default or 'all'})" for key, (default, line) in keys.items()]
    parser = Parser(f"python -m {module}", description=summary, epilog="\n".join(["keys:", *lines]))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", metavar="key=value", help="see keys below")
    given = parser.parse_args(words).words
    try:
        if signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return work(parse(given, {key: default for key, (default, _) in keys.items()}))
    except (ValueError, OSError) as error:
        print(f"error: {line_of(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}" if interrupted else "interrupted", file=sys.stderr)
        return 130
