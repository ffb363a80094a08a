"""What the laws do not say of the Nyströmformer: its segments, its pseudo-inverse, and how its error falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.nystromformer import Nystromformer, pseudo_inverse
from attention_zoo.softmax import Softmax

from .oracles import softmax
from .oracles.nystromformer import segment_means

BATCH, HEADS, DIM, SEQ_LEN = 3, 2, 6, 100


def inputs(length: int = SEQ_LEN, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (BATCH, HEADS, length, DIM)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def scattered(*counts: int) -> Tensor:
    """(B, N) with so many real tokens in each example, at places drawn at random."""
    generator = torch.Generator().manual_seed(sum(counts))
    mask = torch.zeros(len(counts), SEQ_LEN, dtype=torch.bool)
    for row, count in zip(mask, counts, strict=True):
        row[torch.randperm(SEQ_LEN, generator=generator)[:count]] = True
    return mask


def test_examples_of_at_most_so_many_tokens_as_landmarks_are_softmax_beside_longer_ones() -> None:
    core, qkv, mask = Nystromformer(HEADS, DIM, SEQ_LEN, landmarks=8), inputs(), scattered(8, 100, 5)
    q, k, v = qkv
    out, expected = core(q, k, v, mask), softmax.dense(Softmax(HEADS, DIM, SEQ_LEN), q, k, v, mask)
    short = torch.tensor([0, 2])
    assert_close(out[short], expected[short].masked_fill(~mask[short][:, None, :, None], 0.0))
    assert (out[1] - expected[1]).abs().max() > 1e-2
    weight = mask[:, None, :, None] * torch.sin(torch.arange(DIM))
    for found, exact in zip(
        torch.autograd.grad((out * weight).sum(), qkv), torch.autograd.grad((expected * weight).sum(), qkv), strict=True
    ):
        assert_close(found[short], exact[short])


def test_landmarks_are_means_over_even_shares_of_the_real_tokens() -> None:
    core, mask = Nystromformer(HEADS, DIM, SEQ_LEN, landmarks=8), scattered(9, 61, 100)
    q, k = (x.detach() * mask[:, None, :, None] for x in inputs()[:2])
    for found, x in zip(core.means(q, k, mask), (q, k), strict=True):
        for b in range(BATCH):
            for h in range(HEADS):
                assert_close(found[b, h], segment_means(x[b, h, mask[b]], 8))


def test_the_pseudo_inverse_converges_for_each_head_by_itself() -> None:
    """The heads differ in condition: each starts from its own norms."""
    logits = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = (logits + torch.linspace(4, 12, 6, dtype=torch.float64).view(2, 3, 1, 1) * torch.eye(12)).softmax(-1)
    together = pseudo_inverse(matrix, 12)
    assert_close(together, torch.linalg.pinv(matrix))
    assert_close(pseudo_inverse(matrix[:1, 1:2], 3), pseudo_inverse(matrix, 3)[:1, 1:2], rtol=0, atol=1e-14)


def test_a_step_of_the_pseudo_inverse_is_the_papers_polynomial() -> None:
    a = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    z, eye = a.mT / (a.sum(-2).max() * a.sum(-1).max()), torch.eye(7, dtype=torch.float64)
    expected = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
    assert_close(pseudo_inverse(a, 0), z)
    assert_close(pseudo_inverse(a, 1), expected)


def test_weights_sum_to_one_once_the_inverse_has_converged() -> None:
    q, k, v = inputs()
    mask = scattered(50, 80, 100)
    errors = []
    for iterations in (2, 6, 40):
        out = Nystromformer(HEADS, DIM, SEQ_LEN, landmarks=4, iterations=iterations)(q, k, torch.ones_like(v), mask)
        errors.append((out - mask[:, None, :, None].double()).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


def test_the_error_falls_with_landmarks_until_the_inverse_is_the_worse() -> None:
    """Queries and keys that vary slowly over the sequence, so that a segment has a mean worth its name."""
    place = torch.linspace(0, 1, SEQ_LEN, dtype=torch.float64)[:, None]
    curve = torch.sin(2 * torch.pi * (place * (1 + torch.arange(DIM) / 3) + torch.arange(DIM) / DIM))
    q = k = curve.expand(BATCH, HEADS, -1, -1)
    v, mask = inputs()[2].detach(), torch.ones(BATCH, SEQ_LEN, dtype=torch.bool)
    exact = softmax.dense(Softmax(HEADS, DIM, SEQ_LEN), q, k, v, mask)

    def error(landmarks: int, iterations: int) -> float:
        core = Nystromformer(HEADS, DIM, SEQ_LEN, landmarks=landmarks, iterations=iterations)
        return float((core(q, k, v) - exact).norm() / exact.norm())

    assert error(16, 12) < error(8, 12) / 3 < error(4, 12) / 9
    assert error(16, 6) > 3 * error(16, 12)


def test_autocast_changes_nothing_inside() -> None:
    core, qkv, mask = (
        Nystromformer(HEADS, DIM, SEQ_LEN, landmarks=8),
        inputs(dtype=torch.float32),
        scattered(9, 61, 100),
    )
    expected = core(*qkv, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = core(*qkv, mask)
    assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong", [{"landmarks": 0}, {"landmarks": 2.5}, {"iterations": -1}, {"iterations": True}], ids=str
)
def test_a_wrong_parameter_is_named_in_one_line(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"\A{name}=[^\n]* must be an integer of at least [01]\Z"):
        Nystromformer(HEADS, DIM, SEQ_LEN, **wrong)
