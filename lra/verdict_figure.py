"""The picture of our own results: accuracy against speed, memory as area, a panel per task and device."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lra.ours import Row
from lra.published import floors
from lra.style import STYLE, colours_of
from lra.verdicts import Interval, Standing, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2
WIDTH, HEIGHT = 5.2, 4.0
# Points of the figure for a letter and a line of the labels, and around each marker.
LETTER, LINE, FONT = 4.3, 9.0, 7.5
# The area of a marker in square points for each MB, and the least that can be seen.
AREA, LEAST = 0.06, 12.0
# Points of accuracy within which a baseline is drawn beside the intervals.
NEAR = 5.0
NOTHING = "No run has finished yet."
CAPTION = "Area: peak memory. Bars: 95% interval. Speeds compare within a panel alone: one task, one device."


class Point(NamedTuple):
    """A cell on one device. accuracy in percent, speed in tokens/s of training, memory in MB."""

    attn: str
    accuracy: float
    interval: Interval
    speed: float
    memory: float
    seeds: int

    @property
    def said(self) -> str:
        """All of it in words: the name of the point in the file, which is what a test compares."""
        seeds = f"{self.seeds} seed{'s' * (self.seeds != 1)}"
        return f"{self.attn}: {self.accuracy:.1f}%, {self.speed:,.0f} tokens/s, {self.memory:,.0f} MB, {seeds}"

    @property
    def label(self) -> str:
        return f"{self.attn}, {self.memory / 1000:.1f} GB"


class Panel(NamedTuple):
    """What may be compared: one task, one device."""

    task: str
    device: str
    floors: dict[str, float]
    points: list[Point]

    @property
    def near_floors(self) -> dict[str, float]:
        """The baselines that are drawn: one far away would press the points together."""
        low = min(point.interval.low for point in self.points) - NEAR
        high = max(point.interval.high for point in self.points) + NEAR
        return {name: accuracy for name, accuracy in self.floors.items() if low < accuracy < high}


def panels(table: Sequence[Standing]) -> list[Panel]:
    """The finished cells of `table` whose speed and memory are known, by task and device."""
    found: dict[tuple[str, str], list[Point]] = defaultdict(list)
    under: dict[str, dict[str, float]] = {}
    for standing in table:
        for device, rows in standing.by_device().items():
            speed, memory = mean(rows, lambda row: row.tokens_per_s), _largest(rows)
            if standing.accuracy is None or standing.interval is None or not speed or memory is None:
                continue
            under[standing.task_name] = floors(standing.task, rows[0].source)
            point = Point(standing.attn, standing.accuracy, standing.interval, speed, memory, len(standing.finished))
            found[standing.task_name, device].append(point)
    return [Panel(task, device, under[task], points) for (task, device), points in found.items()]


def _largest(rows: Sequence[Row]) -> float | None:
    return max((row.peak_memory_mb for row in rows if row.peak_memory_mb is not None), default=None)


def draw(parts: Sequence[Panel]) -> bytes:
    """The picture as SVG: the same bytes for the same panels and the same matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        rows, columns = math.ceil(len(parts) / COLUMNS) or 1, min(COLUMNS, len(parts)) or 1
        # White, so that it reads the same on a dark page.
        size = (max(columns, 1.4) * WIDTH, rows * HEIGHT) if parts else (WIDTH, 0.6)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        colours = colours_of(point.attn for part in parts for point in part.points)
        for place, part in enumerate(parts, start=1):
            axes = figure.add_subplot(rows, columns, place)
            axes.set(title=f"{part.task}\n{part.device}", xlabel="training, tokens/s", ylabel="test accuracy (%)")
            _draw_panel(axes, part, {attn: colour for attn, (_, colour) in colours.items()})
        if parts:
            figure.supxlabel(CAPTION, fontsize=8, color="#666666")
            figure.draw_without_rendering()
            for axes, part in zip(figure.axes, parts, strict=True):
                _label(axes, part)
        else:
            figure.text(0.5, 0.5, NOTHING, ha="center", va="center", color="#333333")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _draw_panel(axes: Axes, part: Panel, colours: dict[str, str]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    speeds = [point.speed for point in part.points]
    axes.set_xscale("log")
    axes.set_xlim(min(speeds) / 1.5, max(speeds) * 2.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for name, accuracy in part.near_floors.items():
        axes.axhline(accuracy, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{name}\n{accuracy}%".replace(" ", "\n", 1), (1, accuracy), xycoords=("axes fraction", "data"),
            xytext=(5, 0), textcoords="offset points", va="center", fontsize=7.5, color="#666666",
            annotation_clip=False,
        )  # fmt: skip
    for point in part.points:
        below, above = point.accuracy - point.interval.low, point.interval.high - point.accuracy
        colour = colours[point.attn]
        bars = axes.errorbar(point.speed, point.accuracy, [[below], [above]], color=colour, linewidth=0.9, zorder=2)
        for line in bars.lines[2]:
            line.set_alpha(0.5)
        area = max(AREA * point.memory, LEAST)
        axes.scatter(
            point.speed, point.accuracy, area, color=colour, alpha=0.75, edgecolors="white", zorder=3, gid=point.said
        )


def _label(axes: Axes, part: Panel) -> None:
    """Names beside the points, each where it covers nothing that is drawn, where there is such a place."""
    scale = 72 / axes.figure.dpi

    def at(speed: float, accuracy: float) -> tuple[float, float]:
        x, y = axes.transData.transform((speed, accuracy)) * scale
        return x, y

    centres = {point: at(point.speed, point.accuracy) for point in part.points}
    radii = {point: math.sqrt(max(AREA * point.memory, LEAST) / math.pi) for point in part.points}
    left_end, right_end = (x * scale for x in (axes.bbox.x0, axes.bbox.x1))
    taken = [(x - radii[p], y - radii[p], x + radii[p], y + radii[p]) for p, (x, y) in centres.items()]
    for point, (x, _) in centres.items():
        low, high = (at(point.speed, end)[1] for end in (point.interval.low, point.interval.high))
        taken.append((x - 1, low, x + 1, high))
    for height in (at(point.speed, accuracy)[1] for accuracy in part.near_floors.values()):
        taken.append((left_end, height - 1, right_end, height + 1))
    for point in part.points:
        (x, y), away, wide = centres[point], radii[point] + 3, LETTER * len(point.label)
        tries = [
            (x + side * (away + step / 2) - (wide if side < 0 else 0), y + up * step - LINE / 2)
            for step in range(0, 100, 5)
            for side in (1, -1)
            for up in (1, -1)
        ]
        boxes = [(left, bottom, left + wide, bottom + LINE) for left, bottom in tries]
        free = [box for box in boxes if not any(_overlap(box, other) for other in taken)]
        box = next((box for box in free if box[0] > left_end and box[2] < right_end), (free or boxes)[0])
        taken.append(box)
        far = abs(box[1] + LINE / 2 - y) > LINE
        axes.annotate(
            point.label, (point.speed, point.accuracy), xytext=(box[0] - x, box[1] + LINE / 2 - y),
            textcoords="offset points", fontsize=FONT, va="center", color="#333333", zorder=4,
            arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.5, "shrinkB": 2} if far else None,
        )  # fmt: skip


def _overlap(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def said(svg: bytes) -> list[str]:
    """What a picture says, whatever the matplotlib that drew it: its texts, and the names of its points."""
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"is not an SVG ({error})") from None
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    return sorted([*texts, *(name for group in root.iter() if "tokens/s" in (name := group.get("id", "")))])
