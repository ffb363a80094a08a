"""The budgets of every variant: the values of one parameter at a length, and the share of softmax's work of each.

Longformer, Big Bird, Nystromformer, Scatterbrain, MRA-2 and MRA-2-s have the values of Zeng et al., "Multi Resolution
Analysis (MRA) for Approximate Self-Attention", 2022. Its code names Linformer, Performer and H-Transformer-1D too,
without results; their values, and those of the variants that it does not have, are ours in the same spirit: powers of
two, up to a quarter or a half of softmax's work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

# Tokens of a block of MRA, MRA-2 and MRA-2-s, and of the finer ones of MRA.
BLOCK, FINE = 32, 8
# Tokens of a chunk of Reformer; a token looks at two chunks in each round.
CHUNK = 64


class Choice(NamedTuple):
    """A variant with a value of its budget.

    parameter  the name of the budget, "" with the value 0 where the variant has none
    keywords   its keyword arguments
    workload   the logits, features or look-ups per query as a share of the N logits of softmax, None where no such
               count is meaningful; at most 1
    aims       whether it is meant to come near softmax: others weigh pairs by something else
    """

    attn: str
    parameter: str
    value: int
    keywords: tuple[tuple[str, Any], ...]
    workload: float | None
    aims: bool

    def __str__(self) -> str:
        return f"{self.attn} {self.parameter}={self.value}" if self.parameter else self.attn


class Sweep(NamedTuple):
    """The budget of a variant: values 2^first to 2^last(log2 N), `per_query` logits or the like for each of them."""

    parameter: str
    first: int
    last: Callable[[int], int]
    per_query: Callable[[int], float]
    aims: bool = True
    fixed: tuple[tuple[str, Any], ...] = ()
    # The smallest value that the variant can have is 2^least.
    least: int = 0


BLOCKS = Sweep("blocks_per_row", 0, lambda log: log - 6, lambda value: BLOCK * value, fixed=(("block_size", BLOCK),))
SWEEPS = {
    "mra2": BLOCKS,
    "mra2_s": BLOCKS,
    # A query has as many exact keys as in MRA-2 with a quarter of the value.
    "mra": Sweep(
        "blocks_per_row", 2, lambda log: log - 5, lambda value: FINE * value, fixed=(("scales", (BLOCK, FINE, 1)),)
    ),
    "performer": Sweep("features", 4, lambda log: log - 2, float),
    "linformer": Sweep("rank", 4, lambda log: log - 2, float),
    "soft": Sweep("landmarks", 4, lambda log: min(log - 2, 8), float, aims=False),
    "nystromformer": Sweep("landmarks", 4, lambda log: log - 2, float),
    "yoso": Sweep("hashes", 3, lambda log: min(log - 3, 6), float, aims=False),
    "reformer": Sweep(
        "rounds", 0, lambda log: min(log - 8, 3), lambda value: 2 * CHUNK * value, aims=False, fixed=(("chunk", CHUNK),)
    ),
    "longformer": Sweep(
        "window", 4, lambda log: log - 2, lambda value: value + 1, fixed=(("global_tokens", 1),), least=1
    ),
    # Three blocks of a window, two global ones, three random ones.
    "bigbird": Sweep(
        "block_size", 3, lambda log: log - 4, lambda value: 8 * value,
        fixed=(("window_blocks", 3), ("global_blocks", 1), ("random_blocks", 3)),
    ),
    # At level 0 three blocks, at each level above, with half as many queries, three quarters of two.
    "h_transformer_1d": Sweep("block_size", 3, lambda log: log - 4, lambda value: 4.5 * value, least=1),
    "scatterbrain": Sweep("window", 4, lambda log: log - 2, float),
}  # fmt: skip
# Without a budget, and with weights that are not softmax's.
ELSEWHERE = ("adamra",)


def swept() -> list[str]:
    """Every variant of the zoo that can be measured beside softmax; those without a line in SWEEPS come last."""
    from attention_zoo import ZOO

    return [*SWEEPS, *(name for name in ZOO if name not in (*SWEEPS, "softmax"))]


def sweep(attn: str, n: int) -> list[Choice]:
    """The choices of a variant for inputs of n tokens, the smallest budget first; at least one, however short they are.

    Lengths between powers of two have the values of the power below. A variant without a line in SWEEPS has one choice:
    its defaults.
    """
    if attn not in SWEEPS:
        return [Choice(attn, "", 0, (), None, aims=attn not in ELSEWHERE)]
    parameter, first, last, per_query, aims, fixed, least = SWEEPS[attn]
    high = max(last(n.bit_length() - 1), least)
    values = [2**power for power in range(min(first, high), high + 1)]
    return [
        Choice(attn, parameter, value, (*keyword(attn, value, n), *fixed), min(per_query(value) / n, 1.0), aims)
        for value in values
    ]


def keyword(attn: str, value: int, n: int) -> tuple[tuple[str, Any], ...]:
    """The keyword argument that a value stands for."""
    if attn == "mra":
        # Twice as many pairs of the coarse scale as of the fine one, as in conf/attn/mra.yaml, but not more than exist.
        return (("blocks_per_row", (min(2 * value, -(-n // BLOCK)), value)),)
    return ((SWEEPS[attn].parameter, value),)
