"""The same mathematics gives the same numbers as the public implementations: same weights in, same output out.

`make test-parity` installs them and runs it. Where a public implementation computes something else, the test restricts
itself to what both compute, and says to what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attention_zoo.bigbird import BigBird
from attention_zoo.linformer import Linformer
from attention_zoo.longformer import Longformer
from attention_zoo.nystromformer import Nystromformer
from attention_zoo.performer import Performer
from attention_zoo.reformer import Reformer
from attention_zoo.yoso import YOSO
from benchmarks.peers import PEERS, Projected, peer
from lra.model import MultiHead

pytestmark = pytest.mark.filterwarnings("ignore")
BATCH, HEADS, DIM, LENGTH = 3, 2, 32, 512
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def seeded_double() -> Any:
    """Float64 throughout: what is left is mathematics."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def both(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, real: Any = ...) -> None:
    """Values, and gradients of all inputs, at the real places of (B, N, ...) or of all."""
    found, expected = ours(*inputs)[real], theirs(*inputs)[real]
    upstream = torch.randn_like(found)
    assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    slopes = [torch.autograd.grad(out, inputs, upstream) for out in (found, expected)]
    assert_close(slopes[0], slopes[1], rtol=TOLERANCE, atol=TOLERANCE)


def copied(ours: MultiHead, **linears: nn.Linear) -> None:
    """Give our projections the weights of theirs; a bias that theirs has not is 0."""
    mine: dict[str, Any] = {**ours.project, "out": ours.out}
    with torch.no_grad():
        for name, linear in mine.items():
            linear.weight.copy_(linears[name].weight)
            linear.bias.zero_() if linears[name].bias is None else linear.bias.copy_(linears[name].bias)


def of_transformers(ours: MultiHead, theirs: Projected) -> None:
    attention: Any = theirs.attention
    copied(ours, q=attention.query, k=attention.key, v=attention.value, out=theirs.out)


def test_every_peer_is_installed_and_runs() -> None:
    for candidate in PEERS:
        assert candidate.installed, f"{candidate.package} is not installed: make peers"
        out = candidate.layer(LENGTH, HEADS, DIM)(torch.randn(2, LENGTH, HEADS * DIM))
        assert out.shape == (2, LENGTH, HEADS * DIM)


def test_performer_is_that_of_performer_pytorch_without_its_epsilon() -> None:
    from performer_pytorch.performer_pytorch import linear_attention, softmax_kernel

    core = Performer(HEADS, DIM, LENGTH, features=64)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kernel = {"projection_matrix": core.directions, "eps": 0.0}
        features = softmax_kernel(q, is_query=True, **kernel), softmax_kernel(k, is_query=False, **kernel)
        return linear_attention(*features, v)

    both(core, theirs, *(numbers(BATCH, HEADS, LENGTH, DIM) for _ in range(3)))


@pytest.mark.parametrize("length", [100, 63])
def test_linformer_is_that_of_the_linformer_package(length: int) -> None:
    from linformer import LinformerSelfAttention

    theirs = LinformerSelfAttention(HEADS * DIM, 100, k=16, heads=HEADS)
    core = Linformer(HEADS, DIM, 100, rank=16)
    with torch.no_grad():
        theirs.proj_v.copy_(theirs.proj_k)
        core.projection.copy_(theirs.proj_k.T.expand(HEADS, -1, -1))
    ours = MultiHead(core, HEADS * DIM)
    copied(ours, q=theirs.to_q, k=theirs.to_k, v=theirs.to_v, out=theirs.to_out)
    both(ours, theirs, numbers(BATCH, length, HEADS * DIM))


def test_nystromformer_is_that_of_nystrom_attention() -> None:
    """For one head of one example: theirs starts the inverse from the largest norm of the whole batch."""
    from nystrom_attention import NystromAttention

    theirs = NystromAttention(DIM, dim_head=DIM, heads=1, num_landmarks=32, pinv_iterations=6, residual=False)
    ours = MultiHead(Nystromformer(1, DIM, LENGTH, landmarks=32), DIM)
    parts = [nn.Linear(DIM, DIM, bias=False) for _ in range(3)]
    for part, weight in zip(parts, theirs.to_qkv.weight.chunk(3), strict=True):
        part.weight = nn.Parameter(weight.detach())
    copied(ours, q=parts[0], k=parts[1], v=parts[2], out=theirs.to_out[0])
    both(ours, theirs, numbers(1, LENGTH, DIM))


def test_nystromformer_is_that_of_transformers() -> None:
    """For one head of one example, as above."""
    theirs = peer("nystromformer", "transformers").layer(LENGTH, 1, DIM)
    assert isinstance(theirs, Projected)
    ours = MultiHead(Nystromformer(1, DIM, LENGTH), DIM)
    of_transformers(ours, theirs)
    both(ours, theirs, numbers(1, LENGTH, DIM))


def test_yoso_in_closed_form_is_that_of_transformers() -> None:
    theirs = peer("yoso", "transformers").layer(LENGTH, HEADS, DIM)
    assert isinstance(theirs, Projected)
    ours = MultiHead(YOSO(HEADS, DIM, LENGTH, expectation=True), HEADS * DIM)
    of_transformers(ours, theirs)
    both(ours, theirs, numbers(BATCH, LENGTH, HEADS * DIM))


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_reformer_is_that_of_reformer_pytorch(rounds: int) -> None:
    """Where theirs keeps to a token's bucket and counts a pair once."""
    from reformer_pytorch import LSHAttention

    buckets = LENGTH // 64
    settings = {"attend_across_buckets": False, "allow_duplicate_attention": False}
    theirs = LSHAttention(bucket_size=64, n_hashes=rounds, causal=False, **settings)
    core = Reformer(1, DIM, LENGTH, rounds=rounds, buckets=buckets).eval()
    torch.manual_seed(5)
    core.rotations = torch.randn(1, DIM, rounds, buckets // 2).permute(2, 0, 1, 3)

    def run(q: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(5)
        return theirs(q * DIM**0.5, v)[0]

    def ours(q: Tensor, v: Tensor) -> Tensor:
        return core(q[:, None], q[:, None], v[:, None])[:, 0]

    both(ours, run, numbers(BATCH, LENGTH, DIM), numbers(BATCH, LENGTH, DIM))


def padded_end(count: int) -> Tensor:
    """(B, N): the second example ends `count` tokens early."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[1, LENGTH - count :] = False
    return mask


@pytest.mark.parametrize("padding", [0, 100])
def test_longformer_is_that_of_transformers_with_tied_global_projections(padding: int) -> None:
    theirs = peer("longformer", "transformers").layer(LENGTH, HEADS, DIM)
    assert isinstance(theirs, Projected)
    attention: Any = theirs.attention
    for name in ("query", "key", "value"):
        getattr(attention, f"{name}_global").load_state_dict(getattr(attention, name).state_dict())
    mask = padded_end(padding)
    marks = torch.zeros(BATCH, LENGTH).masked_fill(~mask, -10000.0)
    marks[:, 0] = 10000.0
    theirs.arguments = lambda x: {
        "attention_mask": marks,
        "is_index_masked": marks < 0,
        "is_index_global_attn": marks > 0,
        "is_global_attn": True,
    }
    ours = MultiHead(Longformer(HEADS, DIM, LENGTH), HEADS * DIM)
    of_transformers(ours, theirs)
    both(lambda x: ours(x, mask), theirs, numbers(BATCH, LENGTH, HEADS * DIM), real=mask)


def random_blocks(core: BigBird, count: int) -> list[np.ndarray]:
    """For each head the key blocks (count - 2, 2) that the inner query blocks draw."""
    pairs = core.select(torch.ones(1, count, dtype=torch.bool))[0].tolist()
    fixed = {x: {0, count - 1, x - 1, x, x + 1} for x in range(1, count - 1)}
    return [np.array([sorted(y for row, y in head if row == x and y not in fixed[x]) for x in fixed]) for head in pairs]


def test_bigbird_is_that_of_transformers_with_our_random_blocks() -> None:
    theirs = peer("bigbird", "transformers").layer(LENGTH, HEADS, DIM)
    assert isinstance(theirs, Projected)
    attention: Any = theirs.attention
    core = BigBird(HEADS, DIM, LENGTH)
    chosen = random_blocks(core, LENGTH // 32)
    assert all(head.shape == (LENGTH // 32 - 2, 2) for head in chosen)
    attention._bigbird_block_rand_mask_with_head = lambda **_: chosen
    ours = MultiHead(core, HEADS * DIM)
    of_transformers(ours, theirs)
    both(ours, theirs.train(), numbers(BATCH, LENGTH, HEADS * DIM))
