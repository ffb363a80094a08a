"""Works measured in turn: their times round by round in one process, their memory each in a process of its own.

Whatever ends a part of a work (memory, an error, a signal, a lost device) is the result of that part; its other parts
and all other works go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.studies.apart import OK, OUT_OF_MEMORY, apart
from benchmarks.studies.race import WHOLE, Entrant, Losses, Rules, Taken, Work, fits, peaks, race, watching

__all__ = ["OK", "OUT_OF_MEMORY", "Entrant", "Rules", "Taken", "Work", "contest", "fitting", "watching"]

FAILED = Taken("", {}, {}, None, "", "", {})


def contest(
    entrants: Sequence[Entrant], rules: Rules, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Taken]:
    """Measure all entrants, the memory of each and then their times in turn; by name."""
    losses: Losses = {entrant.name: {} for entrant in entrants}
    memory: dict[str, float] = {}
    # A GPU counts its memory itself; on a CPU only a fresh process has none to use again.
    groups = [[entrant] for entrant in entrants] if rules.device == "cpu" else [list(entrants)]
    for group in groups:
        tell(f"{named(group)}: memory")
        memory |= _surviving(peaks, group, rules, losses)
    left = [entrant for entrant in entrants if WHOLE not in losses[entrant.name]]
    tell(f"{named(left)}: time" if left else "")
    found = _surviving(race, left, rules, losses)
    return {
        entrant.name: concluded(found.get(entrant.name), memory.get(entrant.name), losses[entrant.name])
        for entrant in entrants
    }


def named(entrants: Sequence[Entrant]) -> str:
    return ", ".join(entrant.name for entrant in entrants)


def concluded(taken: Taken | None, peak: float | None, failed: dict[str, str]) -> Taken:
    """What came of an entrant in the race, with its peak and the reasons of the parts that did not run."""
    if taken is None or not taken.samples:
        return FAILED._replace(result=next(iter(failed.values())), failed=failed)
    result = "; ".join(f"{part}: {told}" for part, told in failed.items()) or OK
    return taken._replace(result=result, peak_mb=peak, failed=failed)


def fitting(make: Callable[[int], Entrant], rules: Rules, most: int = 2**16) -> tuple[int, str]:
    """The largest power of two, up to `most`, with which rules.part of the entrant that `make` makes of it runs, and
    why the next one does not; 0 where not even one runs. What a try has used is given back before the next one."""
    found, at, result = apart(fits, rules.device, make, rules, most)
    # Where the process ended, its last word is the size that was too large.
    return found if found is not None else (int(at[1] or 1) // 2 if at else 0, result)


def _surviving(work: Callable[..., Any], entrants: Sequence[Entrant], rules: Rules, losses: Losses) -> dict[str, Any]:
    """What `work` finds of the entrants; a part that ends the process is lost, and all start again without it."""
    while left := [entrant for entrant in entrants if WHOLE not in losses[entrant.name]]:
        found, at, result = apart(work, rules.device, left, rules, losses)
        if found is not None:
            for name, parts in found[1].items():
                losses[name] |= parts
            return found[0]
        name, part = at or (left[0].name, WHOLE)
        losses[name][part] = result
    return {}
