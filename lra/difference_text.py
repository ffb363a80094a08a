"""Differences as Markdown: between our variants on the same test items, and between the numbers of published tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lra.differences import SIGNS, Printed, least_favourable, most_favourable, unpaired
from lra.markdown import grid, literal
from lra.paired import ALPHA, DRAWS, Pair

MULTIPLE = "corrected by Holm over all pairs of a task"


def paired(pairs: Sequence[Pair]) -> Iterable[str]:
    yield "## Variants on the same test items\n"
    yield (
        "Command: `make results`, from `runs/published/ours/*.npz`. p: McNemar's exact test of runs of one seed"
        f" (several seeds: twice the mean of theirs), {MULTIPLE}; interval: the percentile bootstrap of the difference"
        f" over items, and over seeds where there are several, {DRAWS:,} resamples. Of one seed both are about the two"
        " trained models: how far another seed would move them is not in it.\n"
    )
    if not pairs:
        yield "No two variants have finished runs of one seed on the same items yet.\n"
        return
    heads = (
        "task",
        "first",
        "second",
        "seeds",
        "difference",
        "95% interval",
        "only one is right",
        "p",
        "p corrected",
        "real",
    )
    yield grid(heads, [_pair_row(pair) for pair in pairs], right=(4, 5, 6, 7, 8)) + "\n"
    real = sum(pair.real for pair in pairs)
    yield f"{real} of {len(pairs)} differences are real at {ALPHA:.0%} by this test.\n"


def _pair_row(pair: Pair) -> list[str]:
    counts = zip(pair.only_first, pair.only_second, strict=True)
    return [
        pair.task,
        f"`{pair.first}`",
        f"`{pair.second}`",
        ", ".join(map(str, pair.seeds)),
        f"{pair.difference:+.1f}",
        f"{pair.low:+.1f} to {pair.high:+.1f}",
        "; ".join(f"{first:,} : {second:,}" for first, second in counts),
        _p(pair.p),
        _p(pair.corrected),
        "yes" if pair.real else "no",
    ]


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def published_tables(tables: Sequence[Printed]) -> Iterable[str]:
    yield "## Which differences of the published tables are real at all\n"
    yield (
        "Command: `make results`, from the published accuracies and the number of test items alone, each source by"
        " itself. Nobody published which items were right, so a paired test of them cannot be made; but its best and"
        " worst case can. At best the weaker model is right on nothing that the stronger one misses: the items that"
        " tell them apart are the difference itself. At worst they are right together as rarely as they can be."
        f" All p-values are {MULTIPLE}, at {ALPHA:.0%}. *Survive*: significant in an unpaired test of two proportions."
        " *Depend*: not in that, but in a paired test if the mistakes coincide well enough. *Cannot*: not even if"
        " they coincide as well as can be. *Whatever*: significant even at the worst. All this is about the models"
        " behind the numbers; the spread of their seeds, which these tables do not have, comes on top.\n"
    )
    heads = (
        *(
            "task",
            "source",
            "protocol",
            "values",
            "models",
            "items",
            "pairs",
            "survive",
            "depend",
            "cannot",
            "whatever",
        ),
        *("smallest, unpaired", "paired at best", "paired at worst"),
    )
    yield grid(heads, [_printed_row(one) for one in tables], right=range(4, 14)) + "\n"
    yield (
        "*Smallest*: the least difference in points that one pair alone could show at the table's median accuracy, and"
        " after the arrow what Holm asks of the first of all pairs.\n"
    )
    signs = ", ".join(f"`{sign}` {kind}" for kind, sign in SIGNS.items())
    yield f"Pair by pair, worst first ({signs}):\n"
    for one in tables:
        yield f"{one.task}, {literal(one.source)}, protocol {one.protocol}:\n"
        yield f"```\n{_matrix(one)}\n```\n"


def _printed_row(one: Printed) -> list[str]:
    pairs = len(one.differences)
    smallest = [
        f"{one.smallest(test):.2f} → {one.smallest(test, ALPHA / pairs):.2f}"
        for test in (unpaired, most_favourable, least_favourable)
    ]
    return [
        *(one.task, f"{one.source}, {one.url}", one.protocol, ", ".join(one.statuses)),
        *(f"{count:,}" for count in (len(one.accuracies), one.n, pairs)),
        *(str(one.count(kind)) for kind in SIGNS),
        str(one.whatever),
        *smallest,
    ]


def _matrix(one: Printed) -> str:
    """A row per model, a sign for each of the models above it."""
    signs = {frozenset((pair.first, pair.second)): SIGNS[pair.kind] for pair in one.differences}
    names, wide = list(one.accuracies), max(map(len, one.accuracies))
    return "\n".join(
        " ".join([f"{name:{wide}} {one.accuracies[name]!s:>5} ", *(signs[frozenset((name, o))] for o in names[:i])])
        for i, name in enumerate(names)
    )
