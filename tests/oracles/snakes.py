"""Pathfinder's images the slow way: whole images at every step, Pillow for what Pillow drew, no tables.

A judge of csrc/pathfinder.cpp, byte for byte. The random words are those of numpy's Philox, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Cell = tuple[int, int]


class Setting(NamedTuple):
    """What was published for a resolution."""

    length: int
    thickness: float
    margins: tuple[int, ...]
    padding: int
    seed_distance: int
    marker_radius: float
    continuity: float
    distractor_dashes: int
    contrasts: tuple[float, float]


SETTINGS = {
    32: Setting(2, 0.5, (1,), 1, 7, 1.5, 1.0, 20, (1.5, 2.0)),
    64: Setting(5, 1, (1,), 1, 12, 2.5, 1.8, 22, (0.8, 0.8)),
    128: Setting(5, 1.5, (2, 3), 1, 20, 3, 1.8, 35, (0.9, 0.9)),
    256: Setting(5, 2, (3,), 22, 27, 5, 1.8, 30, (1.0, 1.0)),
}


class Stuck(Exception):
    """A curve that cannot begin or go on."""


class Draws:
    """Words of one image's stream."""

    def __init__(self, seed: int, resolution: int, dashes: int, index: int) -> None:
        key = np.array([seed, resolution << 32 | dashes], np.uint64)
        self.philox = np.random.Philox(key=key, counter=np.array([0, index, 0, 0], np.uint64))

    def below(self, bound: int) -> int:
        return int(self.philox.random_raw()) * bound >> 64

    def uniform(self) -> float:
        return (int(self.philox.random_raw()) >> 11) * 2.0**-53


def moved(cell: Cell, radians: float, distance: float) -> Cell:
    """The cell that lies so far away, each coordinate rounded up."""
    return math.ceil(cell[0] + distance * math.sin(radians)), math.ceil(cell[1] + distance * math.cos(radians))


def degrees(number: int) -> float:
    return number * math.pi / 180


def disc(radius: int) -> np.ndarray:
    """(2 radius + 1, 2 radius + 1) bool."""
    steps = np.arange(-radius, radius + 1)
    return steps[:, None] ** 2 + steps[None] ** 2 <= radius**2


def dilated(image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The largest value under `shape` about each cell, as OpenCV has it: -inf where all of it is outside."""
    half = len(shape) // 2
    padded = np.pad(image.astype(float), half, constant_values=-np.inf)
    result = np.full(image.shape, -np.inf)
    for dy, dx in np.argwhere(shape):
        result = np.maximum(result, padded[dy : dy + image.shape[0], dx : dx + image.shape[1]])
    return result


def shrunk(image: np.ndarray, size: int) -> np.ndarray:
    """Bytes, (size, size)."""
    return np.array(Image.fromarray(image.astype(np.uint8)).resize((size, size), Image.Resampling.LANCZOS))


class Painter:
    """One image on its way."""

    def __init__(self, resolution: int, margin: int) -> None:
        self.setting = SETTINGS[resolution]
        self.size = resolution
        self.margin = margin
        self.reach = self.setting.length + math.ceil(self.setting.thickness) + margin
        self.kept: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    def dash(self, radians: float) -> tuple[np.ndarray, np.ndarray]:
        """The line and the mask of a dash as bytes, (2 reach + 1, 2 reach + 1), from the middle on."""
        if radians not in self.kept:
            centre = 2 * self.reach
            fine = Image.new("F", (2 * centre + 1, 2 * centre + 1), "black")
            y, x = moved((centre, centre), radians, 2 * self.setting.length)
            width = round(2 * self.setting.thickness)
            ImageDraw.Draw(fine).line([(centre, centre), (x, y)], fill="white", width=width)
            line, size = np.array(fine), 2 * self.reach + 1
            self.kept[radians] = shrunk(line, size), shrunk(dilated(line, disc(2 * self.margin)), size)
        return self.kept[radians]

    def placed(self, stamp: np.ndarray, centre: Cell, size: int) -> np.ndarray:
        """A picture with `stamp` about one cell, as far as it is inside."""
        reach = len(stamp) // 2
        around = np.zeros((size + 2 * reach, size + 2 * reach), np.uint8)
        around[centre[0] : centre[0] + len(stamp), centre[1] : centre[1] + len(stamp)] = stamp
        return around[reach : reach + size, reach : reach + size]

    def dash_at(self, cell: Cell, radians: float, contrast: float) -> tuple[np.ndarray, np.ndarray]:
        """A whole picture and a whole mask with one dash, in single precision."""
        line, mask = (self.placed(stamp, cell, self.size) for stamp in self.dash(radians))
        return (line / 255 * contrast).astype(np.float32), (mask / 255).astype(np.float32)

    def inside(self, cell: Cell) -> bool:
        return 0 <= cell[0] < self.size and 0 <= cell[1] < self.size

    def pivot(self, tail: Cell, radians: float) -> Cell | None:
        """Where the dash after a first one turns, or None where that is outside."""
        head = moved(tail, radians, self.setting.length)
        back = radians + math.pi if radians + math.pi < math.pi else radians - math.pi
        pivot = moved(head, back, self.setting.length + self.margin)
        return pivot if self.inside(head) and self.inside(pivot) else None

    def free(self, mask: np.ndarray, radians: float) -> np.ndarray:
        """The cells (n, 2) where a first dash may start; Stuck where there are none."""
        half = self.setting.length + self.margin
        # The dash starts one cell to the lower right of the middle of its square, which cuts it off.
        shape = self.placed(self.dash(radians)[1], (half + 1, half + 1), 2 * half + 1) == 255
        grown = dilated(mask, shape)
        if np.isinf(grown).any():
            raise Stuck
        cells = np.argwhere(grown <= 0.3)
        if not len(cells):
            raise Stuck
        return cells

    def candidates(self, pivot: Cell, last: float, mask: np.ndarray) -> Iterator[tuple[Cell, float, float]]:
        """The cells on the circle about the pivot, each with its angle and its probability, up to a factor."""
        radius = self.setting.length + self.margin
        grown = dilated(mask, disc(self.margin))
        turns = np.arange(0, 360, 360.0 / (2 * radius * math.pi)) * math.pi / 180
        points = [(pivot[0] + radius * math.sin(turn), pivot[1] + radius * math.cos(turn)) for turn in turns]
        for y, x in sorted({(math.floor(y), math.floor(x)) for y, x in points}):
            if self.inside((y, x)):
                radians = math.atan2(y - pivot[0], x - pivot[1])
                apart = min(abs(radians - last), 2 * math.pi - abs(radians - last))
                cosine = max(math.cos(min(apart * self.setting.continuity, math.pi / 2)), 0)
                yield (y, x), radians, (1 - grown[y, x]) * cosine**2


class Curve(NamedTuple):
    """A curve that grows."""

    tail: Cell
    head: Cell
    pivot: Cell
    radians: float
    image: np.ndarray
    last: np.ndarray  # the mask of the last dash, which is not yet in the whole mask


def extended(painter: Painter, curve: Curve, mask: np.ndarray, contrast: float, draws: Draws) -> Curve:
    """The curve with one more dash."""
    pivot = moved(curve.pivot, curve.radians, painter.setting.length + 2 * painter.margin)
    found = list(painter.candidates(pivot, curve.radians, mask))
    sums = np.cumsum([weight for *_, weight in found])
    if not found or sums[-1] < 1e-4:
        raise Stuck
    for _ in range(3):
        head, radians, _ = found[int(np.argmax(sums > draws.uniform() * sums[-1]))]
        back = radians + math.pi if radians < 0 else radians - math.pi
        line, own = painter.dash_at(head, back, contrast)
        if (mask + own.astype(float)).max() < 1.8:
            return Curve(curve.tail, head, pivot, radians, np.maximum(curve.image, line), own)
    raise Stuck


def begun(painter: Painter, tail: Cell, pivot: Cell, radians: float, contrast: float) -> Curve:
    line, own = painter.dash_at(tail, radians, contrast)
    return Curve(tail, tail, pivot, radians, line.astype(float), own)


def targets(painter: Painter, dashes: int, draws: Draws) -> tuple[list[Curve], np.ndarray]:
    """The two long curves and the mask that they leave."""
    setting, size = painter.setting, painter.size
    contrast = setting.contrasts[0]
    mask = np.ones((size, size))
    mask[setting.padding : -setting.padding, setting.padding : -setting.padding] = 0
    far = np.ones((size, size))
    far[
        2 * setting.seed_distance : -2 * setting.seed_distance, 2 * setting.seed_distance : -2 * setting.seed_distance
    ] = 0
    curves: list[Curve] = []
    for number in range(2):
        for _ in range(3):
            radians = degrees(draws.below(360) - 180)
            if number == 0:
                cells = painter.free(far, radians)
                y, x = cells[draws.below(len(cells))].tolist()
            else:
                away = degrees(draws.below(360))
                y = round(curves[0].tail[0] + setting.seed_distance * math.sin(away))
                x = round(curves[0].tail[1] + setting.seed_distance * math.cos(away))
            pivot = painter.pivot((y, x), radians)
            if pivot:
                curves.append(begun(painter, (y, x), pivot, radians, contrast))
                break
        else:
            raise Stuck
    for _ in range(dashes - 1):
        for number, curve in enumerate(curves):
            curves[number] = extended(painter, curve, mask, contrast, draws)
            mask = np.maximum(mask, curve.last)
    return curves, np.maximum(mask, curves[1].last)


def distractor(painter: Painter, dashes: int, mask: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """The picture of a short curve, and the mask with it."""
    contrast = painter.setting.contrasts[1]
    lined = np.pad(mask[1:-1, 1:-1], 1, constant_values=1.0)
    for _ in range(3):
        radians = degrees(draws.below(360) - 180)
        if (mask <= 0.3).mean() < 0.01:
            raise Stuck
        cells = painter.free(lined, radians)
        y, x = cells[draws.below(len(cells))].tolist()
        pivot = painter.pivot((y, x), radians)
        if pivot:
            break
    else:
        raise Stuck
    curve = begun(painter, (y, x), pivot, radians, contrast)
    for _ in range(dashes - 1):
        last = curve.last
        curve = extended(painter, curve, mask, contrast, draws)
        mask = np.maximum(mask, last)
    return curve.image, np.maximum(mask, curve.last)


def marker(painter: Painter, cell: Cell) -> np.ndarray:
    """A picture with one disc."""
    radius = int(2 * painter.setting.marker_radius)
    fine = painter.placed(255 * disc(radius).astype(np.uint8), (2 * cell[0], 2 * cell[1]), 2 * painter.size)
    return shrunk(fine, painter.size) / 255


def image(seed: int, resolution: int, dashes: int, index: int, painters: dict[int, Painter]) -> tuple[np.ndarray, ...]:
    """One image: pixels (resolution, resolution) uint8, its label, and its tries, distractors and margin.

    `painters` keeps the dashes that were drawn, by margin, from one image to the next.
    """
    setting = SETTINGS[resolution]
    draws = Draws(seed, resolution, dashes, index)
    label = draws.below(2)
    margin = setting.margins[draws.below(len(setting.margins))]
    painter = painters.setdefault(margin, Painter(resolution, margin))
    tries = 0
    while True:
        tries += 1
        try:
            curves, mask = targets(painter, dashes, draws)
            break
        except Stuck:
            continue
    picture = np.maximum(curves[0].image, curves[1].image)
    placed = 0
    for _ in range(setting.distractor_dashes // (dashes // 3)):
        for _ in range(5):
            try:
                short, mask = distractor(painter, dashes // 3, mask, draws)
            except Stuck:
                continue
            picture = np.maximum(picture, short)
            placed += 1
            break
    origin = draws.below(2)
    terminal = origin if label else 1 - origin
    for cell in (curves[origin].tail, curves[terminal].head):
        picture = np.maximum(picture, marker(painter, cell))
    low, high = picture.min(), picture.max()
    pixels = (((picture - low) * (255 / (high - low))).clip(0, 255) + 0.5).astype(np.uint8)
    return pixels, np.array([label, tries, placed, margin])
