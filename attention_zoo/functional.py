"""Mathematics that more than one variant needs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def block_counts(mask: Tensor, block_size: int) -> Tensor:
    """(B, K) the real tokens of each block; mask (B, N), the last block may be shorter."""
    return F.pad(mask, (0, -mask.shape[1] % block_size)).unflatten(1, (-1, block_size)).sum(-1)


def real_blocks(mask: Tensor, block_size: int) -> Tensor:
    """(B, K) whether a block has real tokens; mask (B, N), the last block may be shorter."""
    missing = -mask.shape[1] % block_size
    return (F.pad(mask, (0, missing)) if missing else mask).unflatten(1, (-1, block_size)).any(-1)


def block_means(x: Tensor, counts: Tensor, block_size: int) -> Tensor:
    """(B, H, K, D) the mean of x (B, H, N, D) over each block's real tokens, in float64; 0 where counts (B, K) is 0.

    Padded rows of x must be 0. In float64, because choices hang on the means: the same block then wins on every device
    and however much padding follows.
    """
    x = F.pad(x, (0, 0, 0, -x.shape[2] % block_size)).unflatten(2, (-1, block_size))  # (B, H, K, block_size, D)
    return x.sum(3, dtype=torch.float64) / counts.clamp(min=1)[:, None, :, None]


def tame(*inputs: Tensor) -> Tensor:
    """(B, H, 1, 1) whether all numbers of a head of x (B, H, N, D) have finite products; NaN and infinity have not.

    For sums that leave out what stands in another head by a factor of 0, which does not make a NaN 0.
    """
    largest = [torch.linalg.vector_norm(x.detach(), math.inf, (2, 3), keepdim=True) for x in inputs]
    return torch.stack(largest).amax(0) <= math.sqrt(torch.finfo(inputs[0].dtype).max)


def orthogonal_features(count: int, dim: int) -> Tensor:
    """(count, dim) rows, each N(0, I) on its own, and orthogonal within every block of `dim` rows.

    Choromanski et al., "Rethinking Attention with Performers", 2020, section 2.4: uniform directions times chi norms.
    """
    blocks = -(-count // dim)
    rotations, upper = torch.linalg.qr(torch.randn(blocks, dim, dim, dtype=torch.float64))
    # With the signs of a positive diagonal the rotations are uniform; those that LAPACK returns are not.
    rotations = rotations * torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[:, None, :]
    norms = torch.randn(count, dim, dtype=torch.float64).norm(dim=-1, keepdim=True)
    return (rotations.mT.flatten(0, 1)[:count] * norms).to(torch.get_default_dtype())
