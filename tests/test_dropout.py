"""Laws of dropout: the masks of a published generator, exact in the mean, made again by the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.ops import kernels
from attention_zoo.ops.dropout import draw_seed, dropout, threshold

from .kernel_cases import HERE

CPU = torch.device("cpu")
MASK = 2**32 - 1


@pytest.fixture(autouse=True)
def loaded() -> None:
    assert kernels.available(CPU)


def philox(key: int, counter: int) -> list[int]:
    """Four words of Philox4x32-10, as its paper writes it."""
    x = [counter >> 32 * i & MASK for i in range(4)]
    k = [key & MASK, key >> 32]
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [b >> 32 ^ x[1] ^ k[0], b & MASK, a >> 32 ^ x[3] ^ k[1], a & MASK]
        k = [k[0] + 0x9E3779B9 & MASK, k[1] + 0xBB67AE85 & MASK]
    return x


def kept(seed: int, size: int, p: float) -> Tensor:
    words = [philox(seed, 16 * (i // 64) + i % 16)[i % 64 // 16] for i in range(size)]
    return torch.tensor(words) >= round(p * 2**32)


def test_the_oracle_is_the_published_generator() -> None:
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(2**64 - 1, 2**128 - 1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 63, 64, 65, 200, 1_000])
def test_every_number_is_kept_by_its_own_word(size: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_ISA", isa)
    x = torch.randn(size)
    torch.manual_seed(size)
    seed = draw_seed()
    torch.manual_seed(size)
    out = dropout(x, 0.3)
    expected = torch.where(kept(seed, size, 0.3), x * torch.tensor(1 / 0.7), 0.0)
    assert torch.equal(out, expected)


def test_the_backward_pass_has_the_mask_of_the_forward_pass() -> None:
    x, d_out = torch.randn(7, 33, requires_grad=True), torch.randn(7, 33)
    out = dropout(x, 0.4)
    (d_x,) = torch.autograd.grad(out, x, d_out)
    assert torch.equal(d_x, torch.where(out == 0, 0.0, d_out * torch.tensor(1 / 0.6)))
    assert torch.autograd.gradcheck(lambda x: again(x), x.detach()[:2].double().requires_grad_())


def again(x: Tensor) -> Tensor:
    """Dropout with the same mask each time."""
    torch.manual_seed(1)
    return dropout(x, 0.4)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p_and_no_pair_of_places_knows_of_each_other(p: float) -> None:
    torch.manual_seed(3)
    n = 1_000_000
    gone = (dropout(torch.ones(n), p) == 0).double()
    # Five standard deviations of a mean, and of a correlation, of independent draws.
    assert abs(gone.mean().item() - p) < 5 * (p * (1 - p) / n) ** 0.5
    for step in (1, 4, 8, 16, 48, 64, 128, 1_024):
        together = ((gone[step:] - p) * (gone[:-step] - p)).mean().item() / (p * (1 - p))
        assert abs(together) < 5 / (n - step) ** 0.5, f"places {step} apart"


def test_two_draws_share_no_mask_and_one_seed_gives_one_mask() -> None:
    x = torch.ones(4_096)
    torch.manual_seed(5)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(first, dropout(x, 0.5))
    assert abs((first == second).double().mean().item() - 0.5) < 5 * 0.5 / 64


def test_the_mask_is_one_for_every_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(7)
            found.append(dropout(torch.ones(100_003), 0.1))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_a_view_is_dropped_as_its_values_are_read() -> None:
    x = torch.randn(6, 40)
    torch.manual_seed(9)
    expected = dropout(x.t().contiguous(), 0.2)
    torch.manual_seed(9)
    assert torch.equal(dropout(x.t(), 0.2), expected)


def test_evaluation_and_no_probability_give_the_input_itself() -> None:
    x = torch.randn(5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_masks_of_torch(dtype: torch.dtype) -> None:
    x = torch.randn(100).to(dtype)
    torch.manual_seed(11)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(11)
    assert torch.equal(dropout(x, 0.3), expected)


def test_the_reference_takes_the_masks_of_torch() -> None:
    x = torch.randn(100)
    torch.manual_seed(13)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(13)
    with kernels.use("reference"):
        assert torch.equal(dropout(x, 0.3), expected)


def test_what_is_no_number_stays_none() -> None:
    x = torch.full((64,), float("nan"))
    assert dropout(x, 0.5).isnan().all()


def test_a_probability_next_to_one_keeps_a_word_to_compare_with() -> None:
    assert threshold(1 - 2**-40) == 2**32 - 1
    assert threshold(0.1) == round(0.1 * 2**32)
