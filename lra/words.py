"""The words of a command line: `key=value`, checked, answered in one line when they are wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

# Characters of a line about words, and of one that may name several paths.
SHORT, LONG = 380, 900


class WordError(ValueError):
    """A word was wrong: the message is the one line that the user reads, the exit code is 2."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `allowed`, or nothing where none is close."""
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def one_line(text: str, most: int = SHORT) -> str:
    """A message as one line that a terminal can show.

    One of more than `most` characters is cut in its middle and in words that nobody would read, to at most SHORT.
    """
    line = " ".join(
        "".join(each if each.isprintable() or each.isspace() else repr(each)[1:-1] for each in text).split()
    )
    if len(line) <= most:
        return line
    line = re.sub(r"\S{200,}", lambda long: f"{long[0][:120]}...{long[0][-20:]}", line)
    return line if len(line) <= SHORT else f"{line[: SHORT // 2]} ... {line[5 - SHORT // 2 :]}"


def line_of(error: Exception) -> str:
    """The one line that tells an error. What is said of words is kept short; paths are not cut but for a reason."""
    return one_line(str(error), SHORT if isinstance(error, WordError) else LONG)


def choose(key: str, value: str, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of `allowed`, raise WordError naming key, value and choices if not."""
    if value not in allowed:
        raise WordError(f"{key}={value} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
    return value


def parse(words: Iterable[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """Read `key=value` words over `defaults`; an unknown key or a word without `=` is a WordError."""
    values = dict(defaults)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise WordError(f"{word!r} is not of the form key=value; keys: {', '.join(defaults)}")
        if key not in defaults:
            raise WordError(f"unknown key {key!r}, known are {', '.join(defaults)}{nearest(key, defaults)}")
        values[key] = value
    return values


def explain(error: BaseException, known: Callable[[], Iterable[str]]) -> str:
    """One line for what Hydra or OmegaConf raised over a word; `known` gives the keys that exist, dotted."""
    if group_file := getattr(error, "missing_cfg_file", None):
        group, _, name = group_file.rpartition("/")
        options = getattr(error, "options", None) or []
        if not options:
            return f"there is no conf/{group_file}.yaml"
        return f"{group}={name} is not one of {', '.join(options)}{nearest(name, options)}"
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if word := getattr(error, "override", None):
        reason = said if not said.startswith("Error parsing") else str(error).splitlines()[1]
        return f"{word!r} is not of the form key=value ({reason})"
    cause = error.__cause__
    key = getattr(cause, "full_key", None)
    if key and said.startswith("Could not override"):
        whole = said.split("'")[1]
        keys = known()
        if whole in keys:
            return f"no key {whole!r} with the other words; other choices of a group have it"
        return f"unknown key {whole!r}{nearest(whole, keys) or '; --cfg job lists the keys'}"
    if key:
        return f"{said.removeprefix('Error merging override ')}: {str(cause).splitlines()[0]}"
    named = getattr(error, "full_key", None)
    return f"{named}: {said}" if named and named not in said else said
