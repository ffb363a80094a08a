"""How all figures look."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Colours that colour-blind readers tell apart: Okabe and Ito's without yellow, then four of Paul Tol's muted ones.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#44AA99", "#999933", "#332288")
SOFTMAX = "#222222"
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lra",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}


def colours_of(attentions: Iterable[str]) -> dict[str, tuple[int, str]]:
    """By attention, how often the palette was used up before, and a colour: the same in every panel, softmax grey."""
    others = enumerate(sorted(set(attentions) - {"softmax"}))
    return {attn: (i // len(PALETTE), PALETTE[i % len(PALETTE)]) for i, attn in others} | {"softmax": (0, SOFTMAX)}
