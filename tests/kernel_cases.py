"""Random arguments of the block-sparse operators, and all that a kernel makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo.ops import kernels
from attention_zoo.ops.block_sparse import block_sparse_attention

LEVELS = ("portable", "avx2", "avx512")
NAMES = ("out", "lse", "d_q", "d_k", "d_v", "d_prior_logit", "d_prior_value")


def runs_here(level: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {"portable": True, "avx2": " avx2 " in flags and " fma " in flags, "avx512": " avx512dq " in flags}[level]


HERE = [level for level in LEVELS if runs_here(level)]


class Case(NamedTuple):
    heads: int
    length: int
    dim: int
    block_size: int
    density: float
    masked: bool
    prior: bool
    spread: float
    seed: int


cases = st.builds(
    Case,
    heads=st.integers(1, 3),
    length=st.integers(1, 150),
    dim=st.sampled_from([1, 5, 16, 20, 32, 64, 128]),
    block_size=st.sampled_from([1, 7, 8, 16, 32, 33, 64, 100]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    masked=st.booleans(),
    prior=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 2**20),
)


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Random heads and pairs. Of two heads and more, the second is masked altogether where `masked`."""
    generator = torch.Generator().manual_seed(case.seed)
    count = -(-case.length // case.block_size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    drawn = torch.rand(case.heads, count, count, generator=generator) < case.density
    blocks = torch.tensor([count, 0]).repeat(case.heads, int(drawn.sum((1, 2)).max()) + 1, 1)
    for head in range(case.heads):
        pairs = drawn[head].nonzero()
        blocks[head, : len(pairs)] = pairs
    mask = torch.rand(case.heads, case.length, generator=generator) < 0.7
    mask[1:2] = False
    prior_logit = normal(case.heads, count)
    prior_logit[0, -1] = -math.inf
    qkv = [normal(case.heads, case.length, case.dim) for _ in range(3)]
    return {
        "q": (case.spread * qkv[0].float()).to(dtype),
        "k": qkv[1],
        "v": qkv[2],
        "blocks": blocks,
        "block_size": case.block_size,
        "mask": mask if case.masked else None,
        "prior_logit": prior_logit if case.prior else None,
        "prior_value": normal(case.heads, count, case.dim) if case.prior else None,
    }


def upstream(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the two results: any, and 0 for the lse of a query without a key."""
    generator = torch.Generator().manual_seed(3)
    d_out, d_lse = (torch.randn(x.shape, generator=generator) for x in (out, lse))
    return d_out.to(out.dtype), d_lse.masked_fill(lse == -math.inf, 0.0).to(lse.dtype)


def results(word: str, given: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """out, lse and all gradients by the kernel that `word` names, in the order of NAMES; everything in `dtype`."""
    with kernels.use(word):
        return _run(lambda **x: block_sparse_attention(**x), given, dtype)


def whole(word: str, given: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The same of zoo::coarse_attention: out, and the gradients of q, k and v."""

    def out(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None) -> tuple[Tensor]:
        return (torch.ops.zoo.coarse_attention(q, k, v, blocks, block_size, mask)[0],)

    with kernels.use(word):
        return _run(out, without_priors(given), dtype)


def without_priors(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of zoo::coarse_attention, which makes its own virtual keys."""
    return {name: x for name, x in given.items() if not name.startswith("prior")}


def _run(operator: Callable[..., tuple[Tensor, ...]], given: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    own: dict[str, Any] = {
        name: x.detach().to(dtype).requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in given.items()
    }
    found = operator(**own)
    learns = [x for x in own.values() if isinstance(x, Tensor) and x.requires_grad]
    lse = found[1] if len(found) > 1 else found[0][..., 0]
    gradients = torch.autograd.grad(found, learns, upstream(found[0], lse)[: len(found)])
    return [*(x.detach() for x in found), *gradients]
