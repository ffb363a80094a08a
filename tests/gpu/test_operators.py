"""The compiled operators on a GPU against dense mathematics in float64, and what a GPU alone can get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.mra2 import MRA2
from attention_zoo.mra2_s import MRA2S
from attention_zoo.ops import block_choice, kernels
from lra.model import MultiHead

from .cases import (
    Case,
    Results,
    as_exact_as_the_dense,
    block_sparse,
    coarse,
    dense_block_sparse,
    dense_coarse,
    errors,
    example,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DIMS = (5, 16, 20, 32, 64, 100, 128)
BLOCK_SIZES = (16, 32, 64)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@every_dtype
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(("masked", "prior"), [(False, False), (True, False), (False, True), (True, True)])
def test_block_sparse_attention_is_as_exact_as_dense_attention_in_its_dtype(
    device: torch.device, dtype: torch.dtype, dim: int, block_size: int, masked: bool, prior: bool
) -> None:
    given = example(Case(3, 5 * block_size + 7, dim, block_size, masked, prior), device, dtype)
    as_exact_as_the_dense(block_sparse, dense_block_sparse, given, "cuda")


@every_dtype
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_coarse_attention_is_as_exact_as_dense_attention_in_its_dtype(
    device: torch.device, dtype: torch.dtype, dim: int, block_size: int, masked: bool
) -> None:
    given = example(Case(3, 5 * block_size + 7, dim, block_size, masked), device, dtype)
    as_exact_as_the_dense(coarse, dense_coarse, given, "cuda")


@every_dtype
@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("length", [1, 16, 33, 64])
def test_no_pairs_all_pairs_and_short_inputs_are_no_exceptions(
    device: torch.device, dtype: torch.dtype, density: float, length: int
) -> None:
    given = example(Case(2, length, 32, 16, density=density), device, dtype)
    as_exact_as_the_dense(block_sparse, dense_block_sparse, given, "cuda")
    as_exact_as_the_dense(coarse, dense_coarse, given, "cuda")


@every_dtype
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_logits_are_the_references_but_for_the_rounding_of_float64(
    device: torch.device, dtype: torch.dtype, block_size: int, masked: bool
) -> None:
    given = example(Case(3, 9 * block_size + 3, 20, block_size, masked), device, dtype)
    found = torch.ops.zoo.block_logits(given.q, given.k, block_size, given.mask)
    expected = block_choice.block_logits_reference(given.q, given.k, block_size, given.mask)
    assert_close(found, expected, rtol=torch.finfo(torch.float32).eps, atol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 31, 64, 129, 512])
@pytest.mark.parametrize("kind", ["normal", "few values", "constant", "nan"])
@pytest.mark.parametrize("forced", [(0, 0), (1, 0), (2, 3)])
@pytest.mark.parametrize("fill", [False, True])
def test_the_choice_is_that_of_the_reference(
    device: torch.device, count: int, kind: str, forced: tuple[int, int], fill: bool
) -> None:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(3, count, count, generator=generator)
    logits = {"normal": logits, "few values": logits.round(), "constant": 0 * logits, "nan": logits * torch.nan}[kind]
    real = torch.rand(3, count, generator=generator) < 0.8
    most = min(8 * count, count**2)
    budget = torch.tensor([most, most // 2, 0])
    given = logits.to(device), real.to(device), budget.to(device), most, *forced, fill
    found = torch.ops.zoo.choose_blocks(*given)
    assert_close(found, block_choice.choose_blocks_reference(*given), rtol=0, atol=0)


def inputs(device: torch.device, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v (B, H, N, D) as projections leave them, what goes back into the output, and a mask (B, N)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(2, 300, 3, 32, generator=generator).to(device, dtype).transpose(1, 2) for _ in range(4)]
    mask = torch.rand(2, 300, generator=generator) < 0.8
    mask[1, 200:] = False
    return [x.requires_grad_() for x in drawn[:3]], drawn[3], mask.to(device)


def step(core: Callable[..., Tensor], qkv: list[Tensor], upstream: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The output and the gradients."""
    out = core(*qkv, mask)
    return [out.detach(), *torch.autograd.grad(out, qkv, upstream)]


CORES = [MRA2(3, 32, 300, blocks_per_row=3), MRA2S(3, 32, 300, blocks_per_row=3, budget="length")]
every_core = pytest.mark.parametrize("core", CORES, ids=lambda core: type(core).__name__)


@every_core
@every_dtype
def test_the_bits_repeat_whatever_the_memory_held(device: torch.device, dtype: torch.dtype, core: MRA2 | MRA2S) -> None:
    assert core.kernel(device) == "cuda"
    qkv, upstream, mask = inputs(device, dtype)
    first = step(core, qkv, upstream, mask)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        poisoned = [step(core, qkv, upstream, mask) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for results in poisoned:
        assert_close(results, first, rtol=0, atol=0)


@every_core
@every_dtype
def test_nothing_waits_for_the_device(device: torch.device, dtype: torch.dtype, core: MRA2 | MRA2S) -> None:
    qkv, upstream, mask = inputs(device, dtype)
    for m in (None, mask):
        step(core, qkv, upstream, m)
        torch.cuda.set_sync_debug_mode("error")
        try:
            results = step(core, qkv, upstream, m)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(x.isfinite().all() for x in results)


@every_core
@every_dtype
def test_a_captured_graph_computes_anew_at_every_replay(
    device: torch.device, dtype: torch.dtype, core: MRA2 | MRA2S
) -> None:
    qkv, upstream, mask = inputs(device, dtype)
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(3):
            step(core, qkv, upstream, mask)
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(core, qkv, upstream, mask)
    for seed in (1, 2):
        others, other_upstream, other_mask = inputs(device, dtype, seed)
        with torch.no_grad():
            for x, y in zip((*qkv, upstream, mask), (*others, other_upstream, other_mask), strict=True):
                x.copy_(y)
        graph.replay()
        assert_close(captured, step(core, others, other_upstream, other_mask), rtol=0, atol=0)


@every_core
@every_dtype
def test_torch_compile_takes_the_whole_core_as_one_graph(
    device: torch.device, dtype: torch.dtype, core: MRA2 | MRA2S
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(core, fullgraph=True)
    qkv, upstream, mask = inputs(device, dtype)
    for m in (None, mask):
        assert_close(step(compiled, qkv, upstream, m), step(core, qkv, upstream, m))


@every_core
def test_work_goes_to_the_stream_that_is_current(device: torch.device, core: MRA2 | MRA2S) -> None:
    qkv, upstream, mask = inputs(device, torch.float32)
    others, _, _ = inputs(device, torch.float32, seed=1)
    expected = step(core, others, upstream, mask)
    torch.cuda.synchronize(device)
    aside = torch.cuda.Stream(device)
    with torch.cuda.stream(aside):
        # What ran on another stream would overtake these copies.
        torch.cuda._sleep(200_000_000)
        with torch.no_grad():
            for x, y in zip(qkv, others, strict=True):
                x.copy_(y)
        found = step(core, qkv, upstream, mask)
    aside.synchronize()
    assert_close(found, expected, rtol=0, atol=0)


@every_core
def test_every_device_computes_the_same_whichever_is_current(device: torch.device, core: MRA2 | MRA2S) -> None:
    expected = [x.cpu() for x in step(core, *inputs(device, torch.float32))]
    for index in range(torch.cuda.device_count()):
        here = torch.device("cuda", index)
        for current in (0, torch.cuda.device_count() - 1):
            with torch.cuda.device(current):
                found = step(core, *inputs(here, torch.float32))
                assert torch.cuda.current_device() == current
            assert all(x.device == here for x in found)
            same = torch.cuda.get_device_capability(here) == torch.cuda.get_device_capability(device)
            tolerance = 0.0 if same else 1e-5
            assert_close([x.cpu() for x in found], expected, rtol=tolerance, atol=tolerance)


@every_dtype
def test_more_heads_than_a_grid_has_rows(device: torch.device, dtype: torch.dtype) -> None:
    """Of 70,000 heads the first and the last ones are those of a small example."""
    few = example(Case(4, 40, 16, 16, density=0.5), device, dtype)
    many = few.moved(lambda x: x.repeat(17_500, *[1] * (x.dim() - 1)))
    many = replace(many, case=replace(few.case, heads=70_000))
    for run in (block_sparse, coarse):
        small, large = run(few), run(many)
        for name, x in large.items():
            for part in (x[:4], x[65_536:65_540], x[-4:]):
                assert_close(part, small[name], rtol=0, atol=0)
    logits = torch.ops.zoo.block_logits(many.q, many.k, 16, many.mask)
    assert_close(logits[-4:], logits[:4], rtol=0, atol=0)
    real = torch.ones(logits.shape[:2], dtype=torch.bool, device=device)
    chosen = torch.ops.zoo.choose_blocks(logits, real, torch.full_like(real[:, 0], 5, dtype=torch.int64), 5, 1, 0, True)
    assert_close(chosen[-4:], chosen[:4], rtol=0, atol=0)


@every_dtype
@pytest.mark.parametrize("length", [12_320, 16_389])
def test_long_inputs_are_as_exact_as_the_reference(device: torch.device, dtype: torch.dtype, length: int) -> None:
    core = MRA2(1, 32, length, blocks_per_row=4)
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (torch.randn(1, 1, length, 32, generator=generator).to(device, dtype) for _ in range(4))
    pairs = core.choose(q, k, None).flatten(0, 1)

    def results(dtype: torch.dtype) -> Results:
        qkv = [x.flatten(0, 1).to(dtype).requires_grad_() for x in (q, k, v)]
        out = torch.ops.zoo.coarse_attention(*qkv, pairs, 32, None)[0]
        gradients = torch.autograd.grad(out, qkv, upstream.flatten(0, 1).to(dtype))
        return {"out": out.detach(), **{f"d_{name}": x for name, x in zip("qkv", gradients, strict=True)}}

    found = results(dtype)
    with kernels.use("reference"):
        exact, theirs = results(torch.float64), results(dtype)
    # The reference computes half types in float32; a kernel that multiplies in them rounds its weights as well, which
    # is one rounding of each of the two sides of a product.
    once = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    ours, limits = errors(found, exact), errors(theirs, exact)
    for name, error in ours.items():
        scale = exact[name].square().mean().sqrt().item()
        assert error <= 2 * limits[name] + 2 * once * scale + 1e-7 * scale, (name, error, limits[name])


@pytest.mark.parametrize("kind", [MRA2, MRA2S])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_hands_half_precision_to_the_kernel(
    device: torch.device, dtype: torch.dtype, kind: type[MRA2 | MRA2S]
) -> None:
    """With all pairs, so that no choice can hang on a rounding."""
    torch.manual_seed(0)
    layer = MultiHead(kind(3, 32, 300, blocks_per_row=10), 96).to(device)
    x = torch.randn(2, 300, 96, device=device, requires_grad=True)
    plain = layer(x, None)
    (expected,) = torch.autograd.grad(plain.square().mean(), x)
    with torch.autocast("cuda", dtype):
        out = layer(x, None)
    (gradient,) = torch.autograd.grad(out.float().square().mean(), x)
    assert out.dtype == dtype
    for found, exact in ((out, plain), (gradient, expected)):
        scale = exact.square().mean().sqrt()
        assert (found - exact).square().mean().sqrt() < 16 * torch.finfo(dtype).eps * scale


def test_gradients_of_queries_without_keys_are_dropped_whatever_they_hold(device: torch.device) -> None:
    given = example(Case(2, 40, 16, 16, masked=False, prior=False, density=0.0), device)
    found = block_sparse(replace(given, d_out=torch.full_like(given.d_out, torch.nan)))
    for name in ("d_q", "d_k", "d_v"):
        assert_close(found[name], torch.zeros_like(found[name]), rtol=0, atol=0)


def test_what_the_kernel_does_not_compute_is_an_error_or_one_line(
    device: torch.device, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = {
        "float32, bfloat16 and float16, not torch.float64": example(Case(1, 40, 16, 16), device, torch.float64),
        "blocks of 16, 32, 64 tokens, not 8": example(Case(1, 40, 16, 8), device),
        "heads of at most 128 dimensions, not 129": example(Case(1, 40, 129, 16), device),
    }
    for rule, given in odd.items():
        with pytest.raises(kernels.KernelError) as caught:
            block_sparse(given)
        assert str(caught.value) == f"kernel=cuda computes {rule}"
        kernels._told.clear()
        with kernels.use("auto"):
            for _ in range(2):
                block_sparse(given)
                coarse(given)
        line = f"kernel: the PyTorch reference runs, the compiled one computes {rule}\n"
        assert capfd.readouterr().err == line


def test_tensors_on_two_devices_are_refused(device: torch.device) -> None:
    given = example(Case(1, 40, 16, 16), device)
    with pytest.raises(RuntimeError, match="blocks must be on the GPU that the other tensors are on"):
        torch.ops.zoo.block_sparse_attention(given.q, given.k, given.v, given.blocks.cpu(), 16, None, None, None)


def test_tensors_at_odd_addresses_are_taken(device: torch.device) -> None:
    given = example(Case(2, 40, 16, 16), device, torch.bfloat16)

    def shifted(x: Tensor) -> Tensor:
        return torch.empty(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(x.shape).copy_(x)

    for run in (block_sparse, coarse):
        assert_close(run(given.moved(shifted)), run(given), rtol=0, atol=0)
