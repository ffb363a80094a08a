"""Examples for the operators on any device, and the same mathematics written densely, in any dtype, as their judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from attention_zoo.ops import kernels
from attention_zoo.ops.block_sparse import block_sparse_attention

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes of an example. Of two heads and more, the second is masked altogether where `masked`."""

    heads: int
    length: int
    dim: int
    block_size: int
    masked: bool = True
    prior: bool = True
    density: float = 0.3
    seed: int = 0

    def count(self) -> int:
        return -(-self.length // self.block_size)


@dataclass(frozen=True)
class Example:
    """q, k, v, d_out (G, N, D), blocks (G, P, 2), mask (G, N) or None, priors (G, K) and (G, K, D) or None."""

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor
    d_lse: Tensor
    blocks: Tensor
    mask: Tensor | None
    prior_logit: Tensor | None
    prior_value: Tensor | None

    def moved(self, change: Callable[[Tensor], Tensor]) -> Example:
        """With every tensor changed."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(x) for name, x in given.items() if isinstance(x, Tensor)}
        return replace(self, **changed)

    def to(self, dtype: torch.dtype) -> Example:
        """With q, k, v and d_out in `dtype`, the others in what goes with it."""
        other = torch.promote_types(dtype, torch.float32)
        dtypes = dict.fromkeys(("q", "k", "v", "d_out"), dtype)
        dtypes |= {name: other for name in ("d_lse", "prior_logit", "prior_value") if getattr(self, name) is not None}
        changed: dict[str, Any] = {name: getattr(self, name).to(its) for name, its in dtypes.items()}
        return replace(self, **changed)


def example(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> Example:
    """Random numbers that are exact in `dtype`, in `dtype`."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    count = case.count()
    drawn = torch.rand(case.heads, count, count, generator=generator) < case.density
    blocks = torch.tensor([count, 0]).repeat(case.heads, int(drawn.sum((1, 2)).max()) + 1, 1)
    for head in range(case.heads):
        chosen = drawn[head].nonzero()
        blocks[head, : len(chosen)] = chosen
    mask = torch.rand(case.heads, case.length, generator=generator) < 0.7
    mask[1:2] = False
    prior_logit = normal(case.heads, count)
    prior_logit[0, -1] = -math.inf
    rows = case.heads, case.length, case.dim
    return (
        Example(
            case,
            q=normal(*rows),
            k=normal(*rows),
            v=normal(*rows),
            d_out=normal(*rows),
            d_lse=normal(case.heads, case.length),
            blocks=blocks,
            mask=mask if case.masked else None,
            prior_logit=prior_logit if case.prior else None,
            prior_value=normal(case.heads, count, case.dim) if case.prior else None,
        )
        .to(dtype)
        .moved(lambda x: x.to(device))
    )


def block_sparse(given: Example) -> Results:
    """out, lse and the gradients by the operator."""
    return _differentiated(given, ("q", "k", "v", "prior_logit", "prior_value"), _block_sparse)


def coarse(given: Example) -> Results:
    """out and the gradients by the operator."""
    return _differentiated(given, ("q", "k", "v"), _coarse)


def dense_block_sparse(given: Example) -> Results:
    """What `block_sparse` computes, by one softmax over all keys and the virtual one."""
    return _differentiated(given, ("q", "k", "v", "prior_logit", "prior_value"), _dense_block_sparse)


def dense_coarse(given: Example) -> Results:
    """What `coarse` computes, by one softmax over all keys, in which unselected pairs have their mean logit."""
    return _differentiated(given, ("q", "k", "v"), _dense_coarse)


def _differentiated(
    given: Example, names: tuple[str, ...], run: Callable[[Example], tuple[Tensor, Tensor | None]]
) -> Results:
    inputs = {name: x.detach().requires_grad_() for name in names if (x := getattr(given, name)) is not None}
    out, lse = run(replace(given, **inputs))
    results, outputs, upstream = {"out": out.detach()}, [out], [given.d_out]
    if lse is not None:
        results["lse"] = lse.detach()
        outputs.append(lse)
        upstream.append(given.d_lse.to(lse.dtype).masked_fill(lse == -math.inf, 0.0))
    gradients = torch.autograd.grad(outputs, list(inputs.values()), upstream)
    return results | {f"d_{name}": x for name, x in zip(inputs, gradients, strict=True)}


def _block_sparse(given: Example) -> tuple[Tensor, Tensor | None]:
    rest: Any = given.blocks, given.case.block_size, given.mask, given.prior_logit, given.prior_value
    return block_sparse_attention(given.q, given.k, given.v, *rest)


def _coarse(given: Example) -> tuple[Tensor, Tensor | None]:
    rest = given.blocks, given.case.block_size, given.mask
    return torch.ops.zoo.coarse_attention(given.q, given.k, given.v, *rest)[0], None


def _dense_block_sparse(given: Example) -> tuple[Tensor, Tensor | None]:
    case, dtype = given.case, given.q.dtype
    logits = given.q @ given.k.mT / math.sqrt(case.dim)  # (G, N, N)
    logits = logits.masked_fill(~_selected(given) | ~_real(given)[:, None, :], -math.inf)
    if given.prior_logit is not None and given.prior_value is not None:
        virtual = given.prior_logit.to(dtype).repeat_interleave(case.block_size, 1)[:, : case.length, None]
        logits = torch.cat([logits, virtual], -1)
    dead = (logits == -math.inf).all(-1)
    lse = logits.masked_fill(dead[:, :, None], 0.0).logsumexp(-1).masked_fill(dead | ~_real(given), -math.inf)
    weights = (logits - lse.masked_fill(lse == -math.inf, math.inf)[:, :, None]).exp()
    out = weights[:, :, : case.length] @ given.v
    if given.prior_value is not None:
        shared = given.prior_value.to(dtype).repeat_interleave(case.block_size, 1)[:, : case.length]
        out = out + weights[:, :, case.length :] * shared
    return out, lse


def _dense_coarse(given: Example) -> tuple[Tensor, Tensor | None]:
    case, real = given.case, _real(given)
    block = torch.arange(case.length, device=real.device) // case.block_size
    member = torch.nn.functional.one_hot(block, case.count()).to(given.q.dtype)  # (N, K)
    kept = member * real[:, :, None]  # (G, N, K)
    means = kept / kept.sum(1, keepdim=True).clamp(min=1)
    q_mean, k_mean = means.mT @ given.q, means.mT @ given.k  # (G, K, D)
    mean_logits = (member @ q_mean) @ (member @ k_mean).mT  # (G, N, N)
    logits = torch.where(_selected(given), given.q @ given.k.mT, mean_logits) / math.sqrt(case.dim)
    logits = logits.masked_fill(~real[:, None, :], -math.inf)
    weights = logits.masked_fill(~real[:, :, None], 0.0).softmax(-1) * real[:, :, None]
    return weights @ given.v, None


def _real(given: Example) -> Tensor:
    """(G, N)"""
    if given.mask is not None:
        return given.mask
    return torch.ones(given.q.shape[:2], dtype=torch.bool, device=given.q.device)


def _selected(given: Example) -> Tensor:
    """(G, N, N): whether query and key are in a selected pair of blocks."""
    case, count = given.case, given.case.count()
    place = given.blocks[..., 0] * count + given.blocks[..., 1]
    grid = torch.zeros(case.heads, count**2 + count, dtype=torch.bool, device=place.device)
    grid = grid.scatter(-1, place, True)[:, : count**2].unflatten(-1, (count, count))
    return grid.repeat_interleave(case.block_size, 1).repeat_interleave(case.block_size, 2)[
        :, : case.length, : case.length
    ]


def errors(found: Results, exact: Results) -> dict[str, float]:
    """Root mean square errors; infinite where a number is missing."""
    distances = {
        name: torch.where(found[name].double() == x, 0.0, found[name].double() - x) for name, x in exact.items()
    }
    return {name: x.square().mean().sqrt().nan_to_num(nan=math.inf).item() for name, x in distances.items()}


def size(exact: Results) -> float:
    """The largest finite number of all results: gradients are differences of numbers of its size."""
    return max(x[x.isfinite()].abs().amax().item() if x.isfinite().any() else 0.0 for x in exact.values())


def as_exact_as_the_dense(
    run: Callable[[Example], Results], dense: Callable[[Example], Results], given: Example, word: str
) -> None:
    """AssertionError where an error of kernel `word` is above twice that of the dense mathematics in the same dtype.

    Errors may vanish by luck, so that some more is allowed: one rounding of the result, a little of the numbers whose
    differences the gradients are, and what it costs that the backward reads `out` from memory, rounded to its dtype.
    """
    case, dtype = given.case, given.q.dtype
    eps = torch.finfo(dtype).eps
    exact = dense(given.to(torch.float64))
    with kernels.use(word):
        ours = errors(run(given), exact)
    theirs = errors(dense(given), exact)
    little = torch.finfo(torch.float32).eps * (2 * size(exact) + 0.5)
    # A query's d_out . out enters the gradient of each of its logits, with weights that sum to 1 at most.
    shift = eps / 2 * (exact["out"] * given.d_out.double()).square().sum(-1).mean().sqrt().item()
    shifts = dict.fromkeys(("d_q", "d_k"), shift / math.sqrt(case.dim))
    shifts["d_prior_logit"] = shift * math.sqrt(case.block_size)
    limits = {
        name: 2 * theirs[name] + little + eps * _root_mean_square(x) + shifts.get(name, 0.0)
        for name, x in exact.items()
    }
    over = {name: (error, limits[name]) for name, error in ours.items() if not error <= limits[name]}
    assert not over, f"{case} in {dtype}: errors and limits {over}"


def _root_mean_square(x: Tensor) -> float:
    x = x[x.isfinite()]
    return x.square().mean().sqrt().item() if x.numel() else 0.0
