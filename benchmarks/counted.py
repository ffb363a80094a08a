"""What MRA-2 computes and moves, by formula: the operations and bytes of each of its phases.

An operation is an addition or a multiplication of a product of matrices; exponentials and maxima are not counted. Bytes
are those that must cross the memory's wires if every array is read or written once: what is read again comes from a
cache. `tile_bytes` is that: the keys and values of all pairs.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    operations: int
    bytes: int


class Shape(NamedTuple):
    """G heads of N tokens and D dimensions in blocks of b tokens; `number` bytes to a number of q, k, v."""

    heads: int
    length: int
    dim: int
    block_size: int
    blocks_per_row: int
    number: int

    @property
    def blocks(self) -> int:
        """K: the blocks of a head."""
        return -(-self.length // self.block_size)

    @property
    def pairs(self) -> int:
        """The pairs of blocks that are exact, of all heads."""
        return self.heads * self.blocks * min(self.blocks_per_row, self.blocks)

    @property
    def tensor(self) -> int:
        """Bytes of q, of k, of v, of the output and of each of their gradients."""
        return self.heads * self.length * self.dim * self.number

    @property
    def tile_bytes(self) -> int:
        """Bytes of keys and values that the pairs read forward, from memory or from a cache."""
        return 2 * self.pairs * self.block_size * self.dim * self.number

    @property
    def per_token(self) -> int:
        """Bytes of a float32 number for each token: lse."""
        return 4 * self.heads * self.length

    @property
    def per_block(self) -> int:
        """Bytes of D + 1 float32 numbers for each block: a virtual key's logit and value, or its gradients."""
        return 4 * self.heads * self.blocks * (self.dim + 1)

    @property
    def pair_list(self) -> int:
        """Bytes of the pairs: two int64 each."""
        return 16 * self.pairs


def choice(s: Shape) -> Cost:
    """Means of q and k, their logits in float64, the best pairs.

    Reads q and k, writes and reads the means and the logits, writes the pairs.
    """
    square = s.heads * s.blocks**2
    means = 2 * 8 * s.heads * s.blocks * s.dim
    return Cost(2 * square * s.dim, 2 * s.tensor + 2 * means + 2 * 4 * square + s.pair_list)


def coarse_forward(s: Shape) -> Cost:
    """Means of q, k and v, and attention of the means: the virtual keys."""
    means = 3 * 4 * s.heads * s.blocks * s.dim
    return Cost(4 * s.heads * s.blocks**2 * s.dim, 3 * s.tensor + 2 * means + s.pair_list + s.per_block)


def coarse_backward(s: Shape) -> Cost:
    """The gradients of the means from those of the virtual keys, with the weights computed again.

    Reads q, k and v again for their means. The gradients of the tokens take their share as they are written.
    """
    means = 3 * 4 * s.heads * s.blocks * s.dim
    operations = 10 * s.heads * s.blocks**2 * s.dim
    return Cost(operations, 3 * s.tensor + 4 * means + s.pair_list + 2 * s.per_block)


def block_forward(s: Shape) -> Cost:
    """Two products a tile. Reads q, k, v, the pairs and the virtual keys; writes the output and lse."""
    operations = 4 * s.pairs * s.block_size**2 * s.dim
    return Cost(operations, 4 * s.tensor + s.per_token + s.pair_list + s.per_block)


def block_backward(s: Shape) -> Cost:
    """Five products a tile; a kernel that goes by rows and then by columns does two of them twice, uncounted here.

    Reads q, k, v, the output, its gradient, lse, the pairs and the virtual keys; writes three gradients and those of
    the virtual keys.
    """
    operations = 10 * s.pairs * s.block_size**2 * s.dim
    return Cost(operations, 8 * s.tensor + s.per_token + s.pair_list + 2 * s.per_block)


def block_step(s: Shape) -> Cost:
    """Forward and backward of the block part."""
    forward, backward = block_forward(s), block_backward(s)
    return Cost(forward.operations + backward.operations, forward.bytes + backward.bytes)


def coarse_forward_alone(s: Shape) -> Cost:
    """The coarse part as it is timed: with the output written."""
    cost = coarse_forward(s)
    return Cost(cost.operations, cost.bytes + s.tensor + s.per_token)


def coarse_backward_alone(s: Shape) -> Cost:
    """The coarse part as it is timed: with the output, its gradient and lse read, and three gradients written."""
    cost = coarse_backward(s)
    return Cost(cost.operations, cost.bytes + 5 * s.tensor + s.per_token)


# What benchmarks/contenders.py times of each phase.
PHASES = {
    ("choice", "forward"): choice,
    ("coarse", "forward"): coarse_forward_alone,
    ("block", "forward"): block_forward,
    ("block", "backward"): block_backward,
    ("coarse", "backward"): coarse_backward_alone,
}


def softmax(s: Shape, part: str) -> int:
    """Operations of softmax attention of all pairs of tokens: two products forward, five more backward."""
    return (4 if part == "forward" else 14) * s.heads * s.length**2 * s.dim


def mra2(s: Shape, part: str) -> Cost:
    """All of a part: forward, or the step of forward and backward."""
    costs = [choice(s), coarse_forward(s), block_forward(s)]
    if part == "step":
        costs += [block_backward(s), coarse_backward(s)]
    return Cost(sum(cost.operations for cost in costs), sum(cost.bytes for cost in costs))
