from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Attention, whole
from .functional import tame
from .ops.hash_collisions import hash_collisions

# Tables have 2^bits rows. With more bits than log2(N) they would cost more than the tokens.
MOST_BITS = 16


class YOSO(Attention):
    """YOSO: a key's weight is the share of random hash functions under which it has the query's code.

    Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli Sampling", 2021.
    https://arxiv.org/abs/2111.09714
    Cost O(N hashes D (bits + D)); O(N^2 D) with expectation.
    No exact limit: the weights that it estimates are (1 - angle / pi)^bits, and the output has length 1.
    Deviations: hash functions are signs of Gaussian projections, not of the paper's faster approximation of them, and
    belong to a head, not to a head of an example; evaluation uses those drawn when the module was built.

    hashes       hash functions m
    bits         signs in the code of one function, tau; None: floor(log2(seq_len))
    expectation  use the expected share itself instead of sampling it (the paper's YOSO-E)
    """

    normalised = False
    resamples = True
    surrogate_gradient = True
    directions: Tensor

    def __init__(
        self,
        heads: int,
        head_dim: int,
        seq_len: int,
        *,
        hashes: int = 16,
        bits: int | None = None,
        expectation: bool = False,
    ) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.hashes = whole("hashes", hashes, least=1)
        default = min(max(1, self.seq_len.bit_length() - 1), MOST_BITS)
        self.bits = default if bits is None else whole("bits", bits, least=1)
        if self.bits > MOST_BITS:
            raise ValueError(f"bits={bits} must be at most {MOST_BITS}: every function has a table of 2^bits rows")
        if not isinstance(expectation, bool):
            raise ValueError(f"expectation={expectation!r} must be true or false")
        self.expectation = expectation
        if expectation:
            self.resamples = False
        else:
            self.register_buffer("directions", self._draw())

    def kernel(self, device: torch.device) -> str | None:
        return None if self.expectation else "reference"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        mix = self.expected if self.expectation else self.sampled
        with torch.autocast(q.device.type, enabled=False):
            return unit(mix(unit(q.to(dtype)), unit(k.to(dtype)), v.to(dtype), mask)).to(v.dtype)

    def expected(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, H, N, D): the values under the weights' closed form, for q and k of length 1, in their dtype."""
        cosine = q @ k.mT  # (B, H, N, N)
        weights = (1 - cosine.detach().clamp(-1, 1).acos() / math.pi) ** self.bits
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None, None, :], 0.0)
        # The factor is 1 and gives the paper's derivative, bits / 2 * weights: a lower bound of the true one, which is
        # infinite at angle 0.
        return (weights * (1 + self.bits / 2 * (cosine - cosine.detach()))) @ v

    def sampled(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, H, N, D): an estimate of `expected`, with the same derivative in terms of its weights.

        NaN in all of a head that has a number without finite products: a NaN has a code, and would not be seen.
        """
        calm = tame(q, k, v)
        q, k, v = (torch.where(calm, x, 0.0) for x in (q, k, v))
        directions = self._draw(q.device) if self.training else self.directions
        q_codes, k_codes = (self.codes(x, directions, mask).flatten(0, 1) for x in (q, k))  # (B * H, N, hashes)
        q, k, values = (x.flatten(0, 1) for x in (q, k, v))  # (B * H, N, D)
        out = hash_collisions(q, k, values, q_codes, k_codes, 2**self.bits, self.bits / 2).view_as(v)
        return torch.where(calm, out, math.nan)

    @torch.no_grad()
    def codes(self, x: Tensor, directions: Tensor, mask: Tensor | None) -> Tensor:
        """(B, H, N, hashes) int64: the signs of x's projections as binary digits; 2^bits for padding.

        Signs are found in float64: then they are the same on every device and however much padding follows.
        """
        signs = (x.double() @ directions.double()).gt_(0).unflatten(-1, (self.hashes, self.bits))  # 1 above 0, else 0
        codes = (signs @ (1 << torch.arange(self.bits, device=x.device)).double()).long()
        return codes if mask is None else codes.masked_fill(~mask[:, None, :, None], 2**self.bits)

    def _draw(self, device: torch.device | None = None) -> Tensor:
        """(H, D, hashes * bits)"""
        return torch.randn(self.heads, self.head_dim, self.hashes * self.bits, device=device)


def unit(x: Tensor) -> Tensor:
    """x with its rows at length 1; rows of 0 stay so."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / largest.masked_fill(largest == 0, 1.0)  # so that no square underflows
    squares = x.square().sum(-1, keepdim=True)
    return x * squares.masked_fill(squares == 0, 1.0).rsqrt()
