"""Reformer: what the laws do not say of it. Who sees whom, how often it counts, and where it converges to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.reformer import Reformer

from .oracles import softmax_rows
from .oracles.reformer import dense
from .test_laws import BATCH, DIM, HEADS, SEQ_LEN, inputs, ragged, relative_error, run


def build(seq_len: int = SEQ_LEN, heads: int = HEADS, dim: int = DIM, **parameters: Any) -> Reformer:
    torch.manual_seed(0)
    return Reformer(heads, dim, seq_len, **parameters).eval()


def weights(core: Reformer, q: Tensor) -> Tensor:
    """(N, N): who looks at whom in the one head of q (N, D), for N <= D."""
    length, dim = q.shape
    return core(q[None, None], q[None, None], torch.eye(length, dim)[None, None])[0, 0, :, :length]


def everyone_else(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention to all other tokens, with queries of length 1 as keys."""
    logits = q @ (q / q.norm(dim=-1, keepdim=True)).mT
    itself = torch.eye(q.shape[2], dtype=torch.bool)
    hidden = itself if mask is None else itself | ~mask[:, None, None, :]
    return logits.masked_fill(hidden, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rounds": 0}, "rounds=0 must be an integer of at least 1"),
        ({"chunk": 0}, "chunk=0 must be an integer of at least 1"),
        ({"chunk": 8.0}, "chunk=8.0 must be an integer of at least 1"),
        ({"buckets": 0}, "buckets=0 must be an integer of at least 2"),
        ({"buckets": 3}, "buckets=3 must be even"),
        ({"buckets": "8"}, "buckets='8' must be an integer of at least 2"),
        ({"across_buckets": 1}, "across_buckets=1 must be true or false"),
    ],
)
def test_wrong_parameters_are_answered_by_name(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Reformer(HEADS, DIM, SEQ_LEN, **parameters)


@pytest.mark.parametrize(
    ("seq_len", "chunk", "buckets"), [(1024, 64, 32), (2048, 64, 64), (4096, 64, 128), (100, 64, 2), (9, 64, 2)]
)
def test_there_are_as_many_buckets_as_published(seq_len: int, chunk: int, buckets: int) -> None:
    assert build(seq_len, chunk=chunk).buckets == buckets


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [{"rounds": 1, "chunk": 7}, {"rounds": 3, "chunk": 4, "buckets": 4}, {"chunk": 1}, {"chunk": 16, "buckets": 2}],
    ids=str,
)
def test_every_setting_agrees_with_the_dense_oracle(parameters: dict[str, Any], across: bool) -> None:
    core = build(across_buckets=across, **parameters).double()
    qkv, mask = inputs(40, torch.float64), ragged(40)
    mask[2, 1:] = False
    expected = run(lambda q, k, v, mask: dense(core, q, k, v, mask), qkv, mask)
    assert_close(run(core, qkv, mask).at(mask), expected.at(mask))


@pytest.mark.parametrize("masked", [False, True])
def test_one_chunk_across_buckets_is_softmax_over_all_others(masked: bool) -> None:
    core = build(chunk=SEQ_LEN, across_buckets=True).double()
    qkv, mask = inputs(63, torch.float64), ragged(63) if masked else None
    places = torch.ones(BATCH, 63, dtype=torch.bool) if mask is None else mask
    assert_close(run(core, qkv, mask).at(places), run(everyone_else, qkv, mask).at(places))


@pytest.mark.parametrize("across", [False, True])
def test_a_chunk_sees_itself_and_the_one_before_and_the_first_does_not_look_back_to_the_last(across: bool) -> None:
    """Parallel queries: one bucket, sorted by position."""
    core = build(16, heads=1, dim=16, chunk=4, across_buckets=across)
    chunk = torch.arange(16) // 4
    behind = chunk[:, None] - chunk
    expected = (behind == 0) | (behind == 1)
    expected.fill_diagonal_(False)
    assert torch.equal(weights(core, torch.ones(16, 16)) > 0, expected)


def test_a_token_sees_itself_only_where_it_sees_no_other() -> None:
    """Opposite queries never share a bucket."""
    core = build(3, heads=1, dim=4, chunk=8)
    q = torch.tensor([[1.0, 2.0, -1.0, 0.5]]) * torch.tensor([[3.0], [1.0], [-2.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert_close(weights(core, q), expected, rtol=0, atol=0)


@pytest.mark.parametrize("across", [False, True])
def test_a_pair_that_several_rounds_see_counts_once(across: bool) -> None:
    once, often = (build(rounds=rounds, chunk=8, across_buckets=across).double() for rounds in (1, 4))
    often.rotations.copy_(once.rotations.expand_as(often.rotations))
    qkv, mask = inputs(63, torch.float64), ragged(63)
    assert_close(run(often, qkv, mask).at(mask), run(once, qkv, mask).at(mask))


def test_no_weight_is_lost_where_queries_are_long() -> None:
    q, k, v = inputs(100)
    out = build(chunk=8)(1e4 * q, k, torch.ones_like(v), ragged(100)).transpose(1, 2)[ragged(100)]
    assert_close(out, torch.ones_like(out))


def test_a_query_of_length_zero_is_finite_and_spreads_its_weight() -> None:
    core = build(8, heads=1, dim=8, chunk=8)
    q = torch.zeros(8, 8, requires_grad=True)
    found = weights(core, q)
    assert_close(found, (1.0 - torch.eye(8)) / 7)
    found.square().sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_half_precision_is_hashed_in_float32() -> None:
    core, mask = build(chunk=8), ragged(100)
    narrow = inputs(100, torch.bfloat16)
    expected = core(*(x.float() for x in narrow), mask).to(torch.bfloat16)
    assert_close(core(*narrow, mask), expected, rtol=0, atol=0)


def test_training_leaves_the_rotations_of_evaluation_alone() -> None:
    core = build(chunk=8)
    before = core(*inputs(63))
    core.train()(*inputs(63))
    assert_close(core.eval()(*inputs(63)), before, rtol=0, atol=0)


def test_more_rounds_come_closer_to_all_others() -> None:
    q, k, v = (x.detach() for x in inputs(100))
    exact = everyone_else(q, k, v, None).double()
    errors = []
    for rounds in (1, 2, 4, 8):
        of_seeds = []
        for seed in range(8):
            torch.manual_seed(seed)
            found = Reformer(HEADS, DIM, 100, rounds=rounds, chunk=16, buckets=8).eval()(q, k, v)
            of_seeds += relative_error([found], [exact])
        errors.append(sum(of_seeds) / len(of_seeds))
    assert all(fewer > 1.2 * more for fewer, more in zip(errors, errors[1:], strict=False)), errors


def test_the_rounds_share_one_softmax() -> None:
    """The paper's sum over rounds, each with 1 / N_ij of a pair, is the softmax over the union of what they see."""
    core = build(rounds=3, chunk=8)
    q, k, v = (x[:1, :1].detach().double() for x in inputs(40, torch.float64))
    one = Reformer(1, DIM, SEQ_LEN, rounds=3, chunk=8).double().eval()
    one.rotations.copy_(core.rotations[:, :1])
    whole = torch.eye(40, dtype=torch.float64)
    union = torch.zeros(40, 40, dtype=torch.bool)
    for start in range(0, 40, DIM):
        union[:, start : start + DIM] = one(q, k, whole[None, None, :, start : start + DIM])[0, 0] > 0
    logits = (q @ (q / q.norm(dim=-1, keepdim=True)).mT)[0, 0].masked_fill(~union, -math.inf)
    assert_close(one(q, k, v)[0, 0], softmax_rows(logits, v[0, 0]))


def test_the_operator_keeps_the_rules_of_custom_operators() -> None:
    core = build(chunk=8)
    q, k, v = (torch.randn(HEADS * 16, DIM, requires_grad=True) for _ in range(3))
    lines = core._lines(torch.randint(0, 4, (2, HEADS, 16)), 8, torch.float32)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.zoo.sorted_chunks_attention, (q, k, v, *lines, 8), test_utils=checks)
    out = torch.ops.zoo.sorted_chunks_attention(q, k, v, *lines, 8)[0]
    (slope,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        slope.sum().backward()
