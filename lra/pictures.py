"""The pictures of a data set: how long its documents are, what its images look like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lra.data import Split
from lra.files import write_atomically
from lra.style import PALETTE, STYLE

BINS = 40
# Where the 95% quantile of the lengths is more than this many times the 5% quantile, their axis is logarithmic.
WIDE = 10
# Of the page of images, in pixels of the page: an image's side at least, unless it is larger; the space around it.
SIDE, GAP = 96, 8
MARGIN = 84
COLUMNS = 10
DPI = 100


def draw_lengths(file: Path, splits: Mapping[str, Split], max_len: int) -> Path:
    """Write histograms of the lengths of documents, a panel per split, as PNG; returns the file."""
    import matplotlib
    from matplotlib.figure import Figure

    lengths = {name: np.diff(split.offsets) for name, split in splits.items()}
    every = np.concatenate(list(lengths.values()))
    low, high = int(every.min()), int(every.max()) + 1
    fifth, last = np.quantile(every, [0.05, 0.95])
    wide = last > WIDE * fifth
    # Edges between whole lengths, so that no bin holds one length more than its neighbours by accident.
    edges = np.geomspace(low, high, BINS + 1) if wide else np.linspace(low, high, BINS + 1)
    edges = np.unique(np.ceil(edges)) - 0.5
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.4), layout="constrained", facecolor="white")
        panels = figure.subplots(len(lengths), 1, sharex=True, sharey=True)
        for axes, (name, each), colour in zip(panels, lengths.items(), PALETTE, strict=False):
            axes.hist(each, edges, weights=np.full(len(each), 1 / len(each)), color=colour)
            axes.set_title(f"{name}: {len(each):,} documents, mean {each.mean():,.0f}, longest {each.max():,} tokens")
            axes.set_axisbelow(True)
            axes.yaxis.set_major_formatter("{x:.1%}")
            if (every == max_len).any():
                axes.axvline(max_len, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)))
        if wide:
            panels[-1].set_xscale("log")
        panels[-1].xaxis.set_major_formatter("{x:,.0f}")
        cut = f"; {max_len:,} (dashed) is the most that is kept" if (every == max_len).any() else ""
        panels[-1].set_xlabel(f"tokens per document{cut}")
        write_atomically(file, lambda out: figure.savefig(out, format="png", dpi=150))
    return file


def draw_samples(file: Path, split: Split, classes: int) -> Path:
    """Write a page of images, a row for each label, spread evenly over the split, as PNG; returns the file.

    Raises ValueError where a document is no square image.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shares = np.bincount(split.labels, minlength=classes) / len(split.labels)
    rows = []
    for label in range(classes):
        places = np.flatnonzero(split.labels == label)
        chosen = np.linspace(0, len(places) - 1, min(COLUMNS, len(places))).astype(int)
        rows.append([_image(split, place) for place in places[chosen].tolist()])
    side = max(len(image) for row in rows for image in row)
    scale = max(SIDE // side, 1)
    step = side * scale + GAP
    page = np.full((classes * step - GAP, COLUMNS * step - GAP), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            large = image.repeat(scale, axis=0).repeat(scale, axis=1)
            page[i * step : i * step + len(large), j * step : j * step + len(large)] = large
    height, width = page.shape
    whole = (width + MARGIN + GAP, height + MARGIN // 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(whole[0] / DPI, whole[1] / DPI), facecolor="white")
        axes = figure.add_axes((MARGIN / whole[0], GAP / whole[1], width / whole[0], height / whole[1]))
        # As red, green and blue: the way through a colour map is not exact.
        axes.imshow(page[..., None].repeat(3, axis=-1), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"{len(split.labels):,} training images of {side} x {side} pixels, {COLUMNS} of each label")
        for label, share in enumerate(shares):
            middle = label * step + side * scale / 2
            axes.text(-GAP, middle, f"label {label}\n{share:.1%}", ha="right", va="center", fontsize=10)
        write_atomically(file, lambda out: figure.savefig(out, format="png", dpi=DPI))
    return file


def _image(split: Split, place: int) -> np.ndarray:
    """(S, S) uint8: document `place`, whose tokens are the pixels of a square row by row."""
    start, end = split.offsets[place : place + 2].tolist()
    side = math.isqrt(end - start)
    if side * side != end - start:
        raise ValueError(f"image {place} has {end - start:,} pixels, which make no square")
    return split.tokens[start:end].reshape(side, side)
