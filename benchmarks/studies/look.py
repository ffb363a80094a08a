"""How the figures of the studies look: colours, where labels stand, what is above and below the panels."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.studies.found import Line, plain, threads
from lra.files import write_atomically
from lra.style import PALETTE, SOFTMAX, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The variants of the MRA paper's own figures, each with its colour and mark; all others are grey.
STRONG = ("mra2", "mra2_s", "longformer", "bigbird", "nystromformer", "scatterbrain")
MARKS = ("o", "s", "^", "D", "v", "P")
GREYS = ("#8c8c8c", "#a8a8a8", "#757575")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 1, 1, 1, 1, 1)))
INK, FAINT = "#333333", "#777777"
SMALL = 7.5


class Look(NamedTuple):
    """How one attention is drawn everywhere in a figure."""

    colour: str
    mark: str
    dashes: Any
    width: float
    strong: bool

    def line(self) -> dict[str, Any]:
        """Of a line."""
        return {
            "color": self.colour, "linestyle": self.dashes, "linewidth": self.width, "zorder": 3 if self.strong else 2
        }  # fmt: skip


def looks(names: Iterable[str], exact: Iterable[str] = ()) -> dict[str, Look]:
    """The look of every attention named; `exact` ones are dashed and dark."""
    exacts = {"softmax": "-", "eager": DASHES[1]} | {
        name: DASHES[2 + i % 3] for i, name in enumerate(sorted(set(exact) - {"softmax", "eager"}))
    }
    found = {}
    for i, name in enumerate(sorted(set(names) - set(STRONG) - exacts.keys())):
        found[name] = Look(GREYS[i % len(GREYS)], ".", DASHES[i % len(DASHES)], 0.9, False)
    found |= {name: Look(PALETTE[i], MARKS[i], "-", 1.7, True) for i, name in enumerate(STRONG)}
    return found | {name: Look(SOFTMAX, "o", dashes, 1.2, False) for name, dashes in exacts.items()}


# A rectangle: left, low, right, high, points.
Box = tuple[float, float, float, float]


def shared(box: Box, others: np.ndarray) -> float:
    """The area that a box has in common with others (M, 4)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((width.clip(0) * height.clip(0)).sum())


def width_of(text: str, look: Look) -> float:
    """About how wide a label is, points."""
    return (0.7 if look.strong else 0.62) * SMALL * len(text)


class Curve(NamedTuple):
    """A line to be labelled: its points in data coordinates, the radius of the mark at each, points."""

    label: str
    points: Sequence[tuple[float, float]]
    radii: Sequence[float]
    look: Look


def label(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write the name of each curve beside one of its points, where it covers the least."""
    corners = _points(axes, [axes.transAxes.transform(corner) for corner in ((0, 0), (1, 1))])
    panel = np.array([[*corners[0], *corners[1]]])
    seen = [_points(axes, axes.transData.transform(list(curve.points))) for curve in curves]
    circles = [
        (point, r)
        for curve, points in zip(curves, seen, strict=True)
        for point, r in zip(points, curve.radii, strict=True)
    ]
    marks = _squares(circles)
    lines = _squares([(point, 1.0) for points in seen for point in _along(points)])
    written: list[Box] = []
    order = sorted(range(len(curves)), key=lambda i: not curves[i].look.strong)
    for curve, points in ((curves[i], seen[i]) for i in order):
        width = width_of(curve.label, curve.look)

        def cost(place: tuple[float, float, float], width: float = width) -> float:
            extra, left, middle = place
            box = left, middle - 0.6 * SMALL, left + width, middle + 0.6 * SMALL
            outside = 1.2 * SMALL * width - shared(box, panel)
            covered = (
                30 * shared(box, np.array(written).reshape(-1, 4)) + 4 * shared(box, marks) + 5 * shared(box, lines)
            )
            return 40 * outside + covered + extra

        _, left, middle = min(_places(points, curve.radii, width), key=cost)
        written.append((left, middle - 0.6 * SMALL, left + width, middle + 0.6 * SMALL))
        _write(axes, curve.label, (left, middle), curve.look)


def _squares(circles: Sequence[tuple[tuple[float, float], float]]) -> np.ndarray:
    return np.array([(x - r, y - r, x + r, y + r) for (x, y), r in circles]).reshape(-1, 4)


def _places(
    points: Sequence[tuple[float, float]], radii: Sequence[float], width: float
) -> Iterator[tuple[float, float, float]]:
    """Where the label of a curve can stand: what speaks against it, its left end and its middle."""
    for i, ((x, y), radius) in enumerate(zip(points, radii, strict=True)):
        reach = radius + 2.5
        right, left = x + reach, x - reach - width
        places = [(right, y), (left, y)]
        places += [(x - width / 2 + dx * width, y + dy * (reach + 5)) for dy in (1, -1) for dx in (0, 0.4, -0.4)]
        places += [(side, y + dy * 8) for side in (right + 6, left - 6) for dy in (1, -1)]
        # An end says more than the middle of a line.
        middling = 6 * min(i, len(points) - 1 - i)
        yield from ((rank + middling, *place) for rank, place in enumerate(places))


def label_ends(axes: Axes, curves: Sequence[Curve], gap: float = 14) -> None:
    """Write the name of each curve right of the panel, at the height of its last point, or near it with a thin line."""
    frame = _points(axes, [axes.transAxes.transform(corner) for corner in ((0, 0), (1, 1))])
    (_, low), (right, high) = frame
    ends = [(curve, *_points(axes, axes.transData.transform([curve.points[-1]]))[0]) for curve in curves]
    # Where two end together the strong one stands above.
    ends.sort(key=lambda end: (end[2], end[0].look.strong))
    heights = spread([min(max(y, low), high) for _, _, y in ends], 1.3 * SMALL, low, high)
    for (curve, x, y), height in zip(ends, heights, strict=True):
        leader: dict[str, Any] = {
            "color": curve.look.colour,
            "linewidth": 0.5,
            "alpha": 0.8,
            "clip_on": False,
            "zorder": 1,
        }
        xs, ys = [x + 1, right + gap - 8, right + gap - 2], [y, y, height]
        axes.plot(*_shares(axes, xs, ys), transform=axes.transAxes, **leader)
        _write(axes, curve.label, (right + gap, height), curve.look)


def spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Heights as near as can be to those wanted, which ascend, at least `apart` from each other, from low to high.

    Where there is no room for all, they stand closer.
    """
    if len(wanted) > 1:
        apart = min(apart, (high - low) / (len(wanted) - 1))
    groups: list[tuple[float, int]] = []
    for i, height in enumerate(wanted):
        groups.append((height - i * apart, 1))
        # Neighbours that would overlap move together, to their mean.
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (a, m), (b, n) = groups[-2:]
            groups[-2:] = [((a * m + b * n) / (m + n), m + n)]
    flat = [height for height, count in groups for _ in range(count)]
    top = high - (len(wanted) - 1) * apart
    return [min(max(height, low), top) + i * apart for i, height in enumerate(flat)]


def _points(axes: Axes, pixels: Any) -> list[tuple[float, float]]:
    return [(float(x) * 72 / axes.figure.dpi, float(y) * 72 / axes.figure.dpi) for x, y in pixels]


def _shares(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Points as shares of the panel."""
    scale = axes.figure.dpi / 72
    pairs = axes.transAxes.inverted().transform([(x * scale, y * scale) for x, y in zip(xs, ys, strict=True)])
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def _along(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Points on a line, 4 apart."""
    for (x, y), (u, v) in zip(points, points[1:], strict=False):
        for i in range(steps := max(int(math.hypot(u - x, v - y) / 4), 1)):
            yield x + (u - x) * i / steps, y + (v - y) * i / steps


def _write(axes: Axes, text: str, at: tuple[float, float], look: Look) -> None:
    (x,), (y,) = _shares(axes, [at[0]], [at[1]])
    colour = look.colour if look.strong or look.colour == SOFTMAX else FAINT
    axes.text(
        x, y, text, transform=axes.transAxes, fontsize=SMALL, color=colour, va="center_baseline", ha="left",
        fontweight="bold" if look.strong else "normal", zorder=2.8, clip_on=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.4},
    )  # fmt: skip


class Paper:
    """A figure whose panels stand at fixed places, inches from the upper left corner."""

    def __init__(self, figure: Figure, width: float, height: float) -> None:
        self.figure, self.width, self.height = figure, width, height

    def panel(self, left: float, top: float, width: float, height: float, **more: Any) -> Axes:
        """Axes at a place."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place, **more)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """A text whose upper left corner is at a place."""
        self.figure.text(left / self.width, 1 - top / self.height, text, **{"va": "top", "ha": "left", **style})


MARGIN, HEAD, LINE = 0.7, 0.85, 0.155


@contextmanager
def paper(file: Path, title: str, about: str, notes: Sequence[str], width: float, height: float) -> Iterator[Paper]:
    """A figure with `height` inches of panels under its head and the notes below them; written to `file` at the end.

    The same bytes each time. Nothing in a text is taken as a formula.
    """
    import matplotlib
    from matplotlib.figure import Figure

    letters = int((width - MARGIN - 0.3) * 72 / (0.5 * SMALL))
    below = [line for note in notes for line in textwrap.wrap(note, letters, subsequent_indent="    ")]
    total = HEAD + height + 0.1 + LINE * len(below) + 0.1
    kind = file.suffix.removeprefix(".")
    with matplotlib.rc_context({**STYLE, "text.parse_math": False}), warnings.catch_warnings():
        # A name may have letters that the font, which the viewer of an SVG chooses anyway, does not have.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(figsize=(width, total), facecolor="white")
        made = Paper(figure, width, total)
        made.text(MARGIN - 0.45, 0.14, title, fontsize=12, fontweight="bold", color="#222222")
        made.text(MARGIN - 0.45, 0.4, textwrap.shorten(about, letters, placeholder="…"), fontsize=8, color=FAINT)
        yield made
        for i, line in enumerate(below):
            made.text(MARGIN - 0.45, HEAD + height + 0.1 + LINE * i, line, fontsize=SMALL, color="#555555")
        metadata = {"Date": None, "Creator": None} if kind == "svg" else None
        write_atomically(file, lambda out: figure.savefig(out, format=kind, metadata=metadata, dpi=150))


def about(line: Line, *more: str) -> str:
    """On what a row was measured, in one line."""
    parts = plain(line["device"], 60), threads(line), f"torch {plain(line['torch'], 30)}", *more
    return " · ".join(part for part in parts if part)


def failures(rows: Iterable[Line], name: Any) -> list[str]:
    """A note for each result that is not ok, with all that have it; `name` says what a row is."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["result"] != "ok":
            found.setdefault(plain(row["result"], 100) or "no result", []).append(name(row))
    return [f"{result}: {', '.join(dict.fromkeys(names))}." for result, names in found.items()]


def configuration(row: Mapping[str, str]) -> str:
    """An attention with its budget."""
    name = plain(row["attn"], 24)
    return f"{name} {plain(row['value'], 12)}" if row["parameter"] else name


def log_ticks(axis: Any, low: float, high: float, base: int = 10) -> None:
    """Ticks of a logarithmic axis as plain numbers, so many that there are some and no more than fit."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    if base == 2:
        first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
        step = max(1, math.ceil((last - first) / 8))
        ticks = [2.0**power for power in range(first, last + 1, step)]
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for parts in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            ticks = [part * 10.0**power for power in powers for part in parts if low <= part * 10.0**power <= high]
            if len(ticks) > 2:
                break
        else:
            ticks = list(MaxNLocator(5).tick_values(low, high))
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def number(value: float) -> str:
    """A number as it stands at an axis or in a label."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
