"""What MRA's choice of block pairs is made of: the logits of block means, and the best pairs of each head.

zoo::block_logits(q, k, block_size, mask)    q, k (G, N, D), mask (G, N) or None: the logits (G, K, K) of the means of
the real tokens of K blocks, computed in float64 and rounded to float32, so that logits that differ by the rounding of
float64 alone become equal: the same block then wins on every device and however much padding follows.

zoo::choose_blocks(logits, real, budget, most, first_blocks, diagonal_blocks, fill)    logits (G, K, K) float32; real
(G, K) bool, the blocks with real tokens; budget (G,) int64: so many pairs, and no more than `most`. Returns the pairs
(G, most, 2) int64, sorted, empty pairs (K, 0) at the end; with `fill` (G, most + K, 2), where a real query block that
would have no pair gets its best one. A pair's score is its logit minus the largest of its row. First come the pairs
that `first_blocks` and `diagonal_blocks` force, then each row's best, then the others; within each by score, and equal
scores by (query block, key block).

Neither has a derivative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels, on_cuda
from .block_sparse import for_heads
from .precision import without_autocast

# A rank is GROUP x (0, 1 or 2) plus a place below GROUP; a pair of rank NEVER cannot be chosen.
GROUP = 2**60
NEVER = 2**62

torch.library.define("zoo::block_logits", "(Tensor q, Tensor k, int block_size, Tensor? mask) -> Tensor")
torch.library.define(
    "zoo::choose_blocks",
    "(Tensor logits, Tensor real, Tensor budget, int most, int first_blocks, int diagonal_blocks, bool fill) -> Tensor",
)


def block_logits(q: Tensor, k: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """The logits (B, H, K, K) of the heads of a batch: q, k (B, H, N, D), mask (B, N)."""
    heads = q.shape[1]
    mask = None if mask is None else for_heads(mask, heads)
    logits = torch.ops.zoo.block_logits(q.flatten(0, 1), k.flatten(0, 1), block_size, mask)
    return logits.unflatten(0, (-1, heads))


def choose_blocks(
    logits: Tensor,
    real: Tensor | None,
    budget: Tensor | int,
    most: int,
    first_blocks: int,
    diagonal_blocks: int,
    fill: bool,
) -> Tensor:
    """The pairs (B, H, P, 2) of the heads of a batch: logits (B, H, K, K); real (B, K), or None where all blocks are;
    budget (B,), or one for all."""
    heads = logits.shape[1]
    logits = logits.flatten(0, 1).float()
    real = logits.new_ones(logits.shape[:2], dtype=torch.bool) if real is None else for_heads(real, heads)
    if isinstance(budget, int):
        budget = logits.new_full(logits.shape[:1], budget, dtype=torch.int64)
    else:
        budget = for_heads(budget, heads)
    rest = most, first_blocks, diagonal_blocks, fill
    return torch.ops.zoo.choose_blocks(logits, real, budget, *rest).unflatten(0, (-1, heads))


@without_autocast
def block_logits_reference(q: Tensor, k: Tensor, block_size: int, mask: Tensor | None) -> Tensor:
    length, dim = q.shape[1:]
    missing = -length % block_size
    if mask is None:
        mask = q.new_ones(q.shape[:2], dtype=torch.bool)
    counts = F.pad(mask, (0, missing)).unflatten(1, (-1, block_size)).sum(-1).clamp(min=1)  # (G, K)
    q_mean, k_mean = (
        F.pad(x.masked_fill(~mask[:, :, None], 0.0), (0, 0, 0, missing))
        .unflatten(1, (-1, block_size))
        .sum(2, dtype=torch.float64)
        / counts[:, :, None]
        for x in (q, k)
    )  # (G, K, D)
    return (q_mean @ k_mean.mT / math.sqrt(dim)).float()


def choose_blocks_reference(
    logits: Tensor, real: Tensor, budget: Tensor, most: int, first_blocks: int, diagonal_blocks: int, fill: bool
) -> Tensor:
    count = logits.shape[-1]
    both = real[:, :, None] & real[:, None, :]  # (G, K, K)
    x, y = torch.arange(count, device=logits.device)[:, None], torch.arange(count, device=logits.device)

    # The bits of a float32 >= 0, read as an integer, are in its order; x K + y makes every rank different.
    logits = logits.masked_fill(~both, -math.inf)
    lost = (logits.amax(-1, keepdim=True) - logits).view(torch.int32).long() & 0x7FFFFFFF
    rank = (lost * count**2 + x * count + y).masked_fill(~both, NEVER)  # (G, K, K)
    best = rank.amin(-1, keepdim=True)  # (G, K, 1)
    forced = (x < first_blocks) | (y < first_blocks)
    if diagonal_blocks:
        forced = forced | ((x - y).abs() <= diagonal_blocks // 2)
    group = torch.where(forced, 0, torch.where(rank == best, 1, 2))
    rank = torch.where(both, rank + group * GROUP, NEVER).flatten(-2)

    rank = rank.topk(most, largest=False, sorted=True).values  # (G, most)
    affordable = torch.arange(most, device=rank.device) < budget[:, None]
    chosen = torch.where((rank < NEVER) & affordable, rank % GROUP % count**2, count**2)
    if fill:
        empty = real.new_zeros(len(chosen), count + 1)
        missed = real & ~empty.scatter(-1, chosen // count, True)[..., :count]
        extra = torch.where(missed, best.squeeze(-1) % count**2, count**2)  # (G, K)
        chosen = torch.cat([chosen, extra], -1)
    chosen = chosen.sort(-1).values
    return torch.stack([chosen // count, chosen % count], -1)


torch.library.impl("zoo::block_logits", "CompositeExplicitAutograd", block_logits_reference)
torch.library.impl("zoo::choose_blocks", "CompositeExplicitAutograd", choose_blocks_reference)


def _compiled_logits(q: Tensor, k: Tensor, block_size: int, mask: Tensor | None) -> Tensor:
    root = math.sqrt(q.shape[-1])
    return torch.ops.zoo.block_logits_cpu(kernels.wide(q), kernels.wide(k), block_size, root, kernels.dense(mask))


def _compiled_choice(logits: Tensor, real: Tensor, budget: Tensor, *rest: Any) -> Tensor:
    return torch.ops.zoo.choose_blocks_cpu(logits.contiguous(), real.contiguous(), budget.contiguous(), *rest)


@torch.library.impl("zoo::block_logits", "CPU")
def _logits_on_cpu(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
    return (_compiled_logits if kernels.compiled(q, k) else block_logits_reference)(q, k, *rest)


@torch.library.impl("zoo::choose_blocks", "CPU")
def _choose_on_cpu(logits: Tensor, *rest: Any) -> Tensor:
    # The library holds a place of K x K in 32 bits.
    small = logits.shape[-1] < 2**16
    return (_compiled_choice if small and kernels.compiled(logits) else choose_blocks_reference)(logits, *rest)


@torch.library.impl("zoo::block_logits", "CUDA")
def _logits_on_cuda(q: Tensor, k: Tensor, block_size: int, mask: Tensor | None) -> Tensor:
    serves = kernels.compiled(q, k, block_size=block_size, dim=q.shape[-1])
    return (on_cuda.block_logits if serves else block_logits_reference)(q, k, block_size, mask)


@torch.library.impl("zoo::choose_blocks", "CUDA")
def _choose_on_cuda(logits: Tensor, *rest: Any) -> Tensor:
    small = logits.shape[-1] < 2**16
    return (on_cuda.choose_blocks if small and kernels.compiled(logits) else choose_blocks_reference)(logits, *rest)


@torch.library.register_fake("zoo::block_logits")
def _fake_logits(q: Tensor, k: Tensor, block_size: int, mask: Tensor | None) -> Tensor:
    count = -(-q.shape[1] // block_size)
    return q.new_empty(q.shape[0], count, count, dtype=torch.float32)


@torch.library.register_fake("zoo::choose_blocks")
def _fake_choice(
    logits: Tensor, real: Tensor, budget: Tensor, most: int, first_blocks: int, diagonal_blocks: int, fill: bool
) -> Tensor:
    room = most + logits.shape[-1] if fill else most
    return logits.new_empty(logits.shape[0], room, 2, dtype=torch.int64)


@kernels.probe
def _probe(device: torch.device) -> None:
    """ValueError unless the compiled operators agree with the references on a small example, the choice bit for bit."""
    block_logits, choose = {
        "cpu": (_compiled_logits, _compiled_choice),
        "cuda": (on_cuda.block_logits, on_cuda.choose_blocks),
    }[device.type]
    wave = torch.arange(2 * 144 * 12, dtype=torch.float32, device=device).view(2, 144, 12)
    mask = torch.arange(144, device=device).remainder(5).ne(3).repeat(2, 1)
    mask[0, 32:48] = False
    for dtype, _ in kernels.trials(device):
        q, k = (0.7 * wave).sin().to(dtype), (1.1 * wave).sin().to(dtype)
        expected = block_logits_reference(q, k, 16, mask)
        if not (block_logits(q, k, 16, mask) - expected).abs().max().item() < 1e-6:
            raise ValueError("the compiled zoo::block_logits disagrees with the reference")
    real, budget = mask.unflatten(1, (-1, 16)).any(-1), torch.tensor([13, 20], device=device)
    for rest in ((20, 1, 1, True), (20, 0, 0, False)):
        given = expected, real, budget, *rest
        if not torch.equal(choose(*given), choose_blocks_reference(*given)):
            raise ValueError("the compiled zoo::choose_blocks disagrees with the reference")
