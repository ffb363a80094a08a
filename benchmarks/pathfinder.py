"""`make bench name=pathfinder`: what Pathfinder's generator makes, and how fast: a CSV file and a page of images."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lra.command import command
from lra.files import write_atomically, write_text
from lra.machine import device_name, git_commit
from lra.tasks.snakes import DIFFICULTIES, RESOLUTIONS, Images, generate

KEYS = {
    "count": ("1000", "images per setting"),
    "seed": ("0", "the images' seed"),
    "out": ("benchmarks/results/pathfinder.csv", "the CSV file"),
    "picture": ("docs/pathfinder.png", "the page of images"),
}
# Images of each label on the page.
EACH = 3

Row = dict[str, str]


def measure(seed: int, resolution: int, difficulty: str, count: int) -> tuple[Row, Images]:
    """Statistics of `count` images made on one thread, and the images."""
    generate(seed, resolution, difficulty, 0, 1)
    begin = time.thread_time()
    images = generate(seed, resolution, difficulty, 0, count)
    spent = time.thread_time() - begin
    tries = images.facts.tries
    row = {
        "resolution": str(resolution),
        "difficulty": difficulty,
        "count": str(count),
        "ms_per_image": f"{spent / count * 1e3:.3f}",
        "tries": f"{tries.mean():.1f}",
        "tries_standard_error": f"{tries.std() / count**0.5:.1f}",
        "nonzero": f"{(images.pixels > 0).mean():.4f}",
        "mean_pixel": f"{images.pixels.mean():.2f}",
        "distractors": f"{images.facts.distractors.mean():.2f}",
        "label_1": f"{images.labels.mean():.3f}",
        "device": device_name(torch.device("cpu")),
        "commit": git_commit(),
    }
    return row, images


def draw(samples: Sequence[tuple[Row, Images]], file: Path) -> None:
    """A row per setting: images of label 1, then of label 0."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(samples), 2 * EACH, figsize=(9, 1.5 * len(samples)), squeeze=False)
    for line, (row, images) in zip(grid, samples, strict=True):
        shown = [*np.flatnonzero(images.labels == 1)[:EACH], *np.flatnonzero(images.labels == 0)[:EACH]]
        for axes, index in zip(line, shown, strict=False):
            axes.imshow(images.pixels[index], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        for axes in line:
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{row['resolution']} {row['difficulty']}", fontsize=9)
    grid[0][0].set_title("label 1: one curve", loc="left", fontsize=9)
    grid[0][EACH].set_title("label 0: two curves", loc="left", fontsize=9)
    figure.tight_layout(pad=0.3)
    try:
        write_atomically(
            file, lambda stream: figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
        )
    finally:
        pyplot.close(figure)


def run(words: dict[str, str]) -> int:
    count, seed = int(words["count"]), int(words["seed"])
    if count < 1:
        raise ValueError(f"count={count} is not at least 1")
    samples = []
    for resolution in RESOLUTIONS:
        for difficulty in DIFFICULTIES:
            row, images = measure(seed, resolution, difficulty, count)
            print(*(f"{key}={row[key]}" for key in row if key not in ("device", "commit")), flush=True)
            # The page needs a few: half are enough in all but one of 2^30 samples.
            samples.append((row, Images(images.pixels[:64].copy(), images.labels[:64], images.facts)))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(samples[0][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row, _ in samples)
    write_text(Path(words["out"]), text.getvalue())
    draw(samples, Path(words["picture"]))
    print(f"written: {words['out']} and {words['picture']}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.pathfinder", "Statistics and samples of Pathfinder's generator.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
