"""Laws of softmax attention with dropped probabilities: the dense maths with a published generator's masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attention_zoo import ZOO
from attention_zoo.ops import block_sparse_cpu, kernels
from attention_zoo.ops.dropout import draw_seed
from attention_zoo.ops.softmax_dropout import all_pairs, serves, softmax_dropout, threshold

from .kernel_cases import HERE

CPU = torch.device("cpu")
LOW = np.uint64(2**32 - 1)
HALF = np.uint64(32)
NAMES = ("out", "d_q", "d_k", "d_v")


@pytest.fixture(autouse=True)
def loaded() -> None:
    assert kernels.available(CPU)


def words(seed: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(4, ...) words of Philox4x32-10 of the counters (first, second), 64 bits each."""
    x = [first & LOW, first >> HALF, second & LOW, second >> HALF]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = [b >> HALF ^ x[1] ^ np.uint64(k[0]), b & LOW, a >> HALF ^ x[3] ^ np.uint64(k[1]), a & LOW]
        k = [k[0] + 0x9E3779B9 & 0xFFFFFFFF, k[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return np.stack(x)


def kept(seed: int, heads: int, length: int, p: float) -> Tensor:
    """(G, N, N) bool: the pairs of (head, query, key) that stay."""
    g, i, j = np.meshgrid(*(np.arange(n, dtype=np.uint64) for n in (heads, length, length)), indexing="ij")
    two, block, lanes = (np.uint64(n) for n in (2, 64, 16))
    drawn = words(seed, j // block * lanes + j % lanes, (g << HALF) + i // two)
    word = np.take_along_axis(drawn, (j % block // lanes).astype(np.int64)[None], 0)[0]
    bits = np.where(i % two == 0, word & np.uint64(0xFFFF), word >> np.uint64(16))
    return torch.from_numpy(bits >= round(p * 2**16))


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, stay: Tensor, p: float) -> Tensor:
    """What is meant, in the dtype of q: (B, H, N, D)."""
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], -math.inf)
    weights = logits.softmax(-1).nan_to_num(0.0)
    return (weights * stay.unflatten(0, q.shape[:2]) / (1 - round(p * 2**16) / 2**16)) @ v


def gradients(out: Tensor, d_out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, inputs, d_out.to(out.dtype))]


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(("length", "dim", "p"), [
    (1, 16, 0.5), (2, 32, 0.1), (63, 32, 0.1), (64, 24, 0.3), (65, 16, 0.9), (97, 32, 0.1), (200, 64, 0.2),
])  # fmt: skip
@pytest.mark.parametrize("padded", [False, True])
def test_value_and_gradients_are_those_of_the_dense_maths(
    length: int, dim: int, p: float, padded: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_ISA", isa)
    torch.manual_seed(length)
    q, k, v, d_out = (torch.randn(3, 2, length, dim) for _ in range(4))
    mask = torch.arange(length) < torch.tensor([length, 1 + length // 2, 1])[:, None] if padded else None
    if mask is not None:
        d_out = d_out * mask[:, None, :, None]
    torch.manual_seed(7)
    seed = draw_seed()
    torch.manual_seed(7)
    ours = copies(q, k, v, torch.float32)
    found = gradients(softmax_dropout(*ours, mask, p), d_out, ours)
    stay = kept(seed, 6, length, p)
    exact, plain = (
        gradients(dense(*inputs, mask, stay, p), d_out, inputs)
        for inputs in (copies(q, k, v, torch.float64), copies(q, k, v, torch.float32))
    )
    bounds = cancelled(q, k, v, d_out, mask, stay, p)
    for name, mine, right, usual, bound in zip(NAMES, found, exact, plain, bounds, strict=True):
        if mask is not None:
            # What stands in padded rows is dropped by the contract around every attention.
            mine, right, usual = (x * mask[:, None, :, None] for x in (mine, right, usual))
        error, peer = ((x.double() - right).norm().item() for x in (mine, usual))
        assert error <= max(2 * peer, bound), name


def copies(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.to(dtype, copy=True).requires_grad_() for x in (q, k, v))
    return q, k, v


def cancelled(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, mask: Tensor | None, stay: Tensor, p: float
) -> list[float]:
    """What roundings of sums of D terms, whose large parts cancel, may leave in the norms of out, d_q, d_k, d_v."""
    sizes = tuple(x.abs().double() for x in (q, k, v, d_out))
    one = torch.ones_like(stay)
    weights = dense(q.double(), k.double(), torch.eye(q.shape[2]).double().expand(*q.shape[:2], -1, -1), mask, one, p)
    gain = sizes[3] @ sizes[2].mT / (1 - p)
    d_logits = weights * (gain + (weights * gain).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    terms = (weights @ sizes[2], d_logits @ sizes[1], d_logits.mT @ sizes[0], weights.mT @ sizes[3])
    return [q.shape[-1] * 2**-24 * x.norm().item() for x in terms]


def test_an_example_without_a_real_token_is_finite_and_hurts_no_other() -> None:
    q, k, v = (torch.randn(2, 2, 70, 16, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[0] = False
    torch.manual_seed(1)
    out = softmax_dropout(q, k, v, mask, 0.2)
    torch.manual_seed(1)
    alone = softmax_dropout(q, k, v, None, 0.2)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    torch.testing.assert_close(out[1], alone[1])
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_pairs_are_dropped_with_probability_p_and_know_nothing_of_each_other(p: float) -> None:
    torch.manual_seed(2)
    heads, length = 4, 256
    # With equal logits, and one-hot values of D = N keys, the output is the mask.
    q = k = torch.zeros(1, heads, length, 64)
    gone = []
    for start in range(0, length, 64):
        v = torch.zeros(1, heads, length, 64)
        v[0, :, start : start + 64] = torch.eye(64)
        torch.manual_seed(2)
        gone.append(softmax_dropout(q, k, v, None, p)[0] == 0)
    dropped = torch.cat(gone, 2).double()
    n = dropped.numel()
    assert abs(dropped.mean().item() - p) < 5 * (p * (1 - p) / n) ** 0.5 + 2**-17
    shifted = [(0, 0, 1), (0, 0, 16), (0, 0, 64), (0, 1, 0), (0, 2, 0), (0, 64, 0), (1, 0, 0), (0, 1, 1)]
    for by in shifted:
        other = dropped.roll(by, (0, 1, 2))
        together = ((dropped - p) * (other - p)).mean().item() / (p * (1 - p))
        assert abs(together) < 5 / n**0.5, f"pairs {by} apart"


@pytest.mark.parametrize("length", [64, 150])
def test_heads_and_rows_and_threads_give_the_same_bits(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, found = torch.get_num_threads(), []
    q, k, v = (torch.randn(2, 3, length, 32, requires_grad=True) for _ in range(3))
    d_out = torch.randn(2, 3, length, 32)
    try:
        for way, threads in (("heads", 1), ("rows", 1), ("heads", 3), ("rows", 2)):
            monkeypatch.setenv("ZOO_BACKWARD", way)
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            found.append(gradients(softmax_dropout(q, k, v, None, 0.1), d_out, (q, k, v)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for mine, other in zip(found[0], others, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_over_draws_is_softmax_attention(masked: bool) -> None:
    torch.manual_seed(4)
    core = ZOO["softmax"](2, 16, 96, dropout=0.3)  # type: ignore[call-arg]
    q, k, v = (torch.randn(1, 2, 70, 16) for _ in range(3))
    mask = (torch.arange(70) < 50)[None] if masked else None
    draws = torch.stack([core.train()(q, k, v, mask) for _ in range(600)])
    error = (draws.mean(0) - core.eval()(q, k, v, mask)).abs()
    # Six standard deviations of a mean of 600.
    assert (error <= 6 * draws.std(0) / 600**0.5 + 1e-6).all()


@pytest.mark.parametrize("word", ["auto", "reference"])
def test_evaluation_drops_nothing_and_draws_nothing(word: str) -> None:
    q, k, v = (torch.randn(3, 2, 150, 16) for _ in range(3))
    mask = torch.arange(150) < torch.tensor([150, 70, 0])[:, None]
    dropping, plain = (ZOO["softmax"](2, 16, 150, dropout=p).eval() for p in (0.1, 0.0))  # type: ignore[call-arg]
    state = torch.get_rng_state()
    for given in (None, mask):
        with kernels.use(word):
            torch.testing.assert_close(dropping(q, k, v, given), plain(q, k, v, given))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_reference_and_float64_take_the_masks_of_torch() -> None:
    q, k, v = (torch.randn(1, 2, 20, 16) for _ in range(3))
    wide = copies(q, k, v, torch.float64)
    assert serves(q, k, v)
    assert not serves(*wide)
    mask = (torch.arange(20) < 12)[None]
    found = []
    for inputs, word in ((wide, "auto"), ((q, k, v), "reference")):
        for given in (None, mask):
            torch.manual_seed(5)
            with kernels.use(word):
                found.append(softmax_dropout(inputs[0], inputs[1], inputs[2], given, 0.4).detach().double())
    for narrow, exact in zip(found[2:], found[:2], strict=True):
        torch.testing.assert_close(narrow, exact, rtol=1e-5, atol=1e-5)


def test_the_operator_refuses_what_it_would_drop_wrongly() -> None:
    q = torch.randn(1, 128, 16)
    pairs = all_pairs(q)
    with pytest.raises(RuntimeError, match="blocks of 64"):
        block_sparse_cpu.forward(q, q, q, pairs, 32, None, None, None, seed=1, threshold=9)
    with pytest.raises(RuntimeError, match="below 2\\^16"):
        block_sparse_cpu.forward(q, q, q, pairs, 64, None, None, None, seed=1, threshold=2**16)
    with pytest.raises(RuntimeError, match="must be sorted"):
        block_sparse_cpu.forward(q, q, q, pairs[:, [1, 0, 2, 3]], 64, None, None, None, seed=1, threshold=9)
    assert threshold(1 - 2**-30) == 2**16 - 1
