"""Which cells of a sweep are cheap: what a run costs beside others, whether any was timed or not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lra.config import Config
from lra.crossover import YARDSTICK, crossover
from lra.plan import DIVERGED, Planned
from lra.tasks import task


def cheapest_first(plans: Sequence[Planned]) -> list[Planned]:
    """The cells with their costs, the cheapest first; of equal ones the order stays.

    A cost is what is left of a cell beside what is left of the cheapest: by the time that earlier runs of its kind
    took, and where there are none by `estimate`, in the proportion in which timed cells of the plan stand to theirs.
    """
    times = measured()
    estimates = [estimate(one.cell.run.config, times) * left(one) for one in plans]
    rates = [one.seconds / guess for one, guess in zip(plans, estimates, strict=True) if one.seconds and guess]
    rate = statistics.median(rates) if rates else 1.0
    costs = [one.seconds or guess * rate for one, guess in zip(plans, estimates, strict=True)]
    least = min((cost for cost in costs if cost), default=1.0)
    priced = [replace(one, cost=cost / least) for one, cost in zip(plans, costs, strict=True)]
    return sorted(priced, key=lambda one: one.cost or 0.0)


def measured() -> dict[str, dict[int, float]]:
    """The time of each attention's forward and backward pass beside softmax's, by length, as `make bench` measured."""
    found, _ = crossover()
    if found is None:
        return {}
    lengths: Sequence[int] = found["lengths"]
    return {
        row["attention"]: {n: ratio for n, ratio in zip(lengths, row["time"], strict=True) if ratio is not None}
        for row in found["rows"]
    } | {YARDSTICK: dict.fromkeys(lengths, 1.0)}


def estimate(config: Config, times: Mapping[str, Mapping[int, float]]) -> float:
    """What a whole run costs, in no unit: steps x documents x N^2 x its attention's time beside softmax's at N tokens.

    N is the number of positions. Of a length that was not measured the nearest stands in; of an attention, softmax.
    """
    n = config.model.seq_len
    documents = config.train.batch_size * (2 if task(config.task).paired else 1)
    known = times.get(config.attn["name"]) or {n: 1.0}
    nearest = min(known, key=lambda length: abs(length - n))
    return config.train.steps * documents * n**2 * known[nearest]


def left(one: Planned) -> float:
    """The share of a cell that is still to be run; of one that is not to be run the whole."""
    steps = one.cell.run.config.train.steps
    done = 0 if one.standing.status == DIVERGED or not one.again else min(one.standing.step, steps)
    return 1 - done / steps
