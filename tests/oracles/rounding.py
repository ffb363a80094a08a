"""Attention over pairs of blocks in float64, and how far float32 may at most be from it: a running error analysis.

Every number is a value with a bound of its error. A sum of n products, in any order, with or without fused steps, is
within gamma_n = n u / (1 - n u) of the sum of the terms' sizes, where u = 2^-24; an error that a term has already is
multiplied by the other factor. So the bounds follow from the formulas below and from how often the same maths in
float32 rounds, and from nothing that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-24
# Below it a number may be 0 or denormal; it stands for a few such losses.
TINY = 2.0**-120
# An exponential within 1.5 units in the last place, each at most 2 u; constants and factors are rounded once each.
EXP = 3
# The keys of a block whose weights are summed before the next ones may raise the maximum.
PART = 64


@dataclass(frozen=True)
class Rounded:
    """A tensor in float64, and how far its float32 may be from it."""

    value: Tensor
    error: Tensor

    def size(self) -> Tensor:
        return self.value.abs() + self.error

    def rounded(self, times: float | Tensor = 1) -> Rounded:
        return Rounded(self.value, self.error + gamma(times) * self.size() + TINY)

    def keep(self, real: Tensor) -> Rounded:
        """Exactly 0 elsewhere."""
        return Rounded(self.value.masked_fill(~real, 0.0), self.error.masked_fill(~real, 0.0))

    def each(self, change: Callable[[Tensor], Tensor]) -> Rounded:
        """The same numbers in another shape."""
        return Rounded(change(self.value), change(self.error))

    @property
    def mT(self) -> Rounded:
        return self.each(lambda x: x.mT)

    def __getitem__(self, index: Any) -> Rounded:
        return self.each(lambda x: x[index])


class Gradients(NamedTuple):
    q: Rounded
    k: Rounded
    v: Rounded
    prior_logit: Rounded
    prior_value: Rounded


def gamma(times: float | Tensor) -> float | Tensor:
    return times * UNIT / (1 - times * UNIT)


def exact(x: Tensor) -> Rounded:
    return Rounded(x.double(), torch.zeros_like(x, dtype=torch.float64))


def plus(a: Rounded, b: Rounded) -> Rounded:
    return Rounded(a.value + b.value, a.error + b.error).rounded()


def minus(a: Rounded, b: Rounded) -> Rounded:
    return plus(a, Rounded(-b.value, b.error))


def times(a: Rounded, b: Rounded) -> Rounded:
    return Rounded(a.value * b.value, a.size() * b.size() - (a.value * b.value).abs()).rounded()


def product(a: Rounded, b: Rounded, terms: float | Tensor) -> Rounded:
    """a @ b, in sums of so many terms."""
    sizes = a.size() @ b.size()
    error = sizes - a.value.abs() @ b.value.abs()
    return Rounded(a.value @ b.value, error.clamp(min=0) + gamma(terms) * sizes + TINY)


def exponential(a: Rounded, times: float | Tensor = 0) -> Rounded:
    value = a.value.exp()
    return Rounded(value, value * a.error.expm1()).rounded(EXP + times)


class Attention(NamedTuple):
    """G heads: q (G, N, D), k and v (G, M, D), over the keys of `allowed` (G, N, M) and a virtual key per query."""

    q: Rounded
    k: Rounded
    v: Rounded
    allowed: Tensor
    scale: float
    tiles: Tensor  # (G, N): in so many steps a query's keys are summed at most
    bias: Rounded | None  # (G, M), added to the logits
    prior_logit: Rounded  # (G, N), -inf: no such key
    prior_value: Rounded  # (G, N, D)

    def logits(self) -> Rounded:
        dim = self.q.value.shape[-1]
        raw = product(self.q, self.k.mT, dim)
        # The scale, its factor to base 2, their product, and that with the sum.
        raw = Rounded(raw.value * self.scale, raw.error * self.scale).rounded(4)
        return raw if self.bias is None else plus(raw, self.bias[:, None, :])

    def terms(self) -> Tensor:
        """(G, N): how often a query's sums over keys are rounded.

        A key's weight is rounded once for each addition, and in each step that raises the maximum by an exponential,
        a product and an addition.
        """
        keys = self.allowed.sum(-1) + 1
        return (keys + (EXP + 2) * torch.minimum(keys, self.tiles)).double()

    def forward(self) -> tuple[Rounded, Rounded]:
        """out (G, N, D), lse (G, N); out 0 and lse -inf where a query has no key."""
        logits, virtual = self.logits(), self.prior_logit
        top = logits.value.masked_fill(~self.allowed, -math.inf).amax(-1).maximum(virtual.value)
        alive = top > -math.inf
        top = top.masked_fill(~alive, 0.0)
        terms = self.terms()

        base = exact(top)
        weights = exponential(minus(logits, base[:, :, None])).keep(self.allowed)  # (G, N, M)
        has = virtual.value > -math.inf
        share = exponential(minus(virtual.keep(has).rounded(2), base)).keep(has)  # (G, N)
        weights = Rounded(
            torch.cat([weights.value, share.value[:, :, None]], -1),
            torch.cat([weights.error, share.error[:, :, None]], -1),
        )
        ones = exact(torch.ones_like(weights.value[:, 0, :, None]))
        total = product(weights, ones, terms[:, :, None])  # (G, N, 1)
        mixed = plus_each(
            product(weights[:, :, :-1], self.v, terms[:, :, None]),
            times(weights[:, :, -1:], self.prior_value),
            terms[:, :, None],
        )

        value = mixed.value / total.value
        # |a' / b' - a / b| <= (|a' - a| + |a / b| |b' - b|) / b'
        error = (mixed.error + value.abs() * total.error) / (total.value - total.error)
        out = Rounded(value, error).rounded(2).keep(alive[:, :, None])
        sums = total[:, :, 0]
        log = Rounded(sums.value.log(), -torch.log1p(-sums.error / sums.value)).rounded(2)
        lse = plus(base, log).rounded(3).keep(alive)
        return out, Rounded(lse.value.masked_fill(~alive, -math.inf), lse.error)

    def backward(self, out: Rounded, lse: Rounded, d_out: Rounded, d_lse: Rounded) -> Gradients:
        """The gradients of all that the formula reads, with those of the virtual keys by query."""
        alive = lse.value > -math.inf
        d_out, d_lse, lse = d_out.keep(alive[:, :, None]), d_lse.keep(alive), lse.keep(alive).rounded(2)
        queries, keys = self.allowed.shape[1:]
        dim = self.q.value.shape[-1]
        ones = exact(torch.ones_like(self.q.value[:, :1, :]))
        shift = minus(product(times(d_out, out), ones.mT, dim)[:, :, 0], d_lse)  # (G, N)

        live = self.allowed & alive[:, :, None]
        weights = exponential(minus(self.logits(), lse[:, :, None])).keep(live)
        d_weights = product(d_out, self.v.mT, dim)
        d_logits = times(minus(d_weights, shift[:, :, None]), weights).rounded(3)  # the scale, and two products with it
        d_logits = Rounded(d_logits.value * self.scale, d_logits.error * self.scale).keep(live)

        has = alive & (self.prior_logit.value > -math.inf)
        share = exponential(minus(self.prior_logit.keep(has).rounded(2), lse)).keep(has)  # (G, N)
        gain = product(times(d_out, self.prior_value), ones.mT, dim)[:, :, 0]
        return Gradients(
            product(d_logits, self.k, keys),
            product(d_logits.mT, self.q, queries),
            product(weights.mT, d_out, queries),
            times(minus(gain, shift), share).keep(has),
            times(share[:, :, None], d_out),
        )


def plus_each(a: Rounded, b: Rounded, times: Tensor) -> Rounded:
    """a + b, where b takes part in a sum that is rounded so often."""
    return plus(a, b.rounded(times))


def by_blocks(x: Tensor, length: int, block_size: int) -> Tensor:
    """(G, K, ...) -> (G, N, ...): what is given by blocks, for each token."""
    return x.repeat_interleave(block_size, 1)[:, :length]


def block_sums(x: Rounded, block_size: int) -> Rounded:
    """(G, N, ...) -> (G, K, ...)"""
    missing = -x.value.shape[1] % block_size
    x = x.each(
        lambda y: torch.cat([y, y.new_zeros(y.shape[0], missing, *y.shape[2:])], 1).unflatten(1, (-1, block_size))
    )
    return Rounded(x.value.sum(2), x.error.sum(2) + gamma(block_size) * x.size().sum(2) + TINY)


def selected(blocks: Tensor, count: int) -> Tensor:
    """(G, K, K) bool from pairs (G, P, 2)."""
    chosen = torch.zeros(len(blocks), count + 1, count, dtype=torch.bool)
    for head, pairs in enumerate(blocks.tolist()):
        for x, y in pairs:
            chosen[head, x, y] = True
    return chosen[:, :count]


def of_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None,
    prior: tuple[Rounded, Rounded],
) -> Attention:
    """The attention of the tokens; the virtual keys (G, K) and (G, K, D)."""
    heads, length, dim = q.shape
    count = -(-length // block_size)
    real = torch.ones(heads, length, dtype=torch.bool) if mask is None else mask
    chosen = selected(blocks, count)
    allowed = by_blocks(by_blocks(chosen, length, block_size).mT, length, block_size).mT
    allowed = allowed & real[:, :, None] & real[:, None, :]
    logit, value = (x.each(lambda y: by_blocks(y, length, block_size)) for x in prior)
    logit = Rounded(logit.value.masked_fill(~real, -math.inf), logit.error.masked_fill(~real, 0.0))
    tiles = by_blocks(chosen.sum(-1), length, block_size) * math.ceil(block_size / PART)
    return Attention(exact(q), exact(k), exact(v), allowed, dim**-0.5, tiles, None, logit, value)


def block_sparse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None,
    prior_logit: Tensor | None,
    prior_value: Tensor | None,
    d_out: Tensor,
    d_lse: Tensor,
) -> list[Rounded]:
    """out, lse and the gradients of q, k, v and of the virtual keys, of zoo::block_sparse_attention."""
    heads, length, dim = q.shape
    count = -(-length // block_size)
    logit = torch.full((heads, count), -math.inf) if prior_logit is None else prior_logit
    value = torch.zeros(heads, count, dim) if prior_value is None else prior_value
    attention = of_tokens(q, k, v, blocks, block_size, mask, (exact(logit), exact(value)))
    out, lse = attention.forward()
    d_q, d_k, d_v, d_logit, d_value = attention.backward(out, lse, exact(d_out), exact(d_lse))
    results = [out, lse, d_q, d_k, d_v]
    if prior_logit is not None:
        results += [block_sums(d_logit, block_size), block_sums(d_value, block_size)]
    return results


def coarse(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None, d_out: Tensor
) -> list[Rounded]:
    """out and the gradients of q, k, v, of zoo::coarse_attention."""
    heads, length, dim = q.shape
    count = -(-length // block_size)
    real = torch.ones(heads, length, dtype=torch.bool) if mask is None else mask
    counts = block_sums(exact(real), block_size).value  # (G, K)
    by = exact(1 / counts.clamp(min=1)).rounded()
    q_mean, k_mean, v_mean = (
        times(block_sums(exact(x).keep(real[:, :, None]), block_size), by[:, :, None]) for x in (q, k, v)
    )
    left = ~selected(blocks, count) & (counts > 0)[:, None, :]
    logs = exact(counts.clamp(min=1).log()).rounded(4)
    no_logit, no_value = exact(torch.full((heads, count), -math.inf)), exact(torch.zeros(heads, count, dim))
    tiles = torch.full((heads, count), math.ceil(count / PART))
    above = Attention(q_mean, k_mean, v_mean, left, dim**-0.5, tiles, logs, no_logit, no_value)
    value, logit = above.forward()

    attention = of_tokens(q, k, v, blocks, block_size, mask, (logit, value))
    out, lse = attention.forward()
    *gradients, d_logit, d_value = attention.backward(out, lse, exact(d_out), exact(torch.zeros(heads, length)))
    d_means = above.backward(value, logit, block_sums(d_value, block_size), block_sums(d_logit, block_size))
    results = [out]
    for d_x, d_mean in zip(gradients, d_means[:3], strict=True):
        share = times(d_mean, by[:, :, None])
        share = share.each(lambda y: by_blocks(y, length, block_size)).keep(real[:, :, None])
        results.append(plus(d_x, share))
    return results
