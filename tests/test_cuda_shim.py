"""The stand-in for a GPU that tests/test_cuda.py relies on: it computes what one does, and finds what is wrong."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import cuda_kernels
from tests.cuda_kernels import KernelFault, check

HALVES = (torch.bfloat16, torch.float16)
RACE = r"\d bytes at byte \d+ of shared memory, which another thread has (read|written), with no barrier"
# What is said of each of the kernels that are wrong.
FAULTS = {
    "NO_BARRIER": RACE,
    "NO_BARRIER_BEFORE_WRITE": RACE,
    "NO_SYNCWARP": RACE,
    "SHUFFLE_FOR_SYNCWARP": RACE,
    "PART_OF_SYNCWARP": RACE,
    "SOME_AT_BARRIER": r"waits at __syncthreads for thread \d+, which has ended",
    "TWO_BARRIERS": r"is at a __syncthreads while thread \d+ waits at another \(self_check.cu:\d+\)",
    "ENDED_AT_BARRIER": r"waits at __syncthreads for thread 40, which has ended",
    "ENDED_IN_WARP": r"waits at __syncwarp for lane 7, which has ended",
    "BARRIER_IN_WARP": r"waits at a ballot for lane 7, which waits at __syncthreads",
    "TWO_MEETINGS": r"is at (__syncwarp|a ballot) with the mask ffffffff while lane \d+ waits at (__syncwarp|a ballot)",
    "NOT_IN_MASK": r"is at a shuffle with the mask 0000ffff, in which it is not",
    "FROM_OUTSIDE": r"wants a value of lane 16, which takes no part",
    "READ_BEYOND": r"reads 4 bytes at byte 102[48] of 1024 of shared memory",
    "WRITE_BEYOND": r"writes 1 bytes at byte 1024 of 1024 of shared memory|which another thread has written",
    "WRITE_BEFORE": r"writes 4 bytes at byte -4 of 1024 of shared memory|which another",
    "MISALIGNED_VECTOR": r"self_check.cu:\d+: touches memory that is not aligned",
    "MISALIGNED_ROW": r"self_check.cu:\d+: loads a row of a matrix at byte \d+, which is not aligned",
    "MISALIGNED_COPY": r"copies to at byte \d+, which is not aligned",
    "MISALIGNED_SOURCE": r"copies from an address that is not aligned to 16",
    "ROW_BEYOND": r"loads a row of a matrix at byte 1024 of 1024 bytes of shared memory",
    "COPY_BEYOND": r"copies to at byte 1024 of 1024 bytes of shared memory",
    "NO_WAIT": r"to which a copy is under way",
    "NO_COMMIT": r"to which a copy is under way",
    "WAIT_FOR_TOO_FEW": r"to which a copy is under way",
    "NO_BARRIER_AFTER_WAIT": r"which another thread has (read|written), with no barrier|to which a copy is under way",
    "COPY_OVER_READ": r"which another thread has (read|written), with no barrier|to which a copy is under way",
    "NEVER_WAITED": r"1 copies that it never waited for",
    "ATOMIC_AND_PLAIN": RACE,
    "GLOBAL_BEYOND": r"reads 4 bytes that are of no array, 0 bytes beyond from",
    "GLOBAL_COPY_BEYOND": r"reads 16 bytes that are of no array, 0 bytes beyond from",
    "WRITE_TO_CONST": r"writes 4 bytes at byte \d+ of from, which has 1024 that must not be written",
    "TWO_BLOCKS_WRITE": r"writes 4 bytes at byte \d+ of to, which another thread has written",
    "BLOCK_READS_ANOTHERS": r"bytes at byte \d+ of to, which another thread has (read|written)",
    "THREADS_SHARE_GLOBAL": r"bytes at byte \d+ of to, which another thread has (read|written)",
    "INTEGER_OVERFLOW": r"self_check.cu:\d+: multiplies beyond the range of an integer",
    "WIDE_SHIFT": r"self_check.cu:\d+: shifts by too many bits",
    "LOCAL_BEYOND": r"self_check.cu:\d+: goes beyond the bounds of an array",
    "TOO_DEEP": r"has no stack left",
}


def run(name: str, *arguments: Tensor | int) -> None:
    given = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.c_int64(x) for x in arguments]
    check(getattr(cuda_kernels.kernels("self_check.cu"), f"check_{name}")(*given))


@pytest.fixture(autouse=True)
def _first_order() -> None:
    cuda_kernels.seed(0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_multiply_add_is_a_product_of_matrices(dtype: torch.dtype) -> None:
    """Of small integers, so that it is exact."""
    generator = torch.Generator().manual_seed(1)
    a, b, c = (torch.randint(-8, 9, shape, generator=generator).float() for shape in ((16, 16), (16, 8), (16, 8)))
    found = c.clone()
    run("multiply", a.to(dtype), b.to(dtype), found, int(dtype == torch.bfloat16))
    assert_close(found, c + a @ b, rtol=0, atol=0)


@pytest.mark.parametrize("turned", [False, True])
def test_matrices_are_loaded_as_documented(turned: bool) -> None:
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    found = torch.zeros(32, 4, 2, dtype=torch.int16)
    run("load", matrices, found, int(turned))
    lane = torch.arange(32)
    row, column = lane // 4, lane % 4 * 2
    matrices = matrices.mT if turned else matrices
    expected = torch.stack([matrices[:, row, column], matrices[:, row, column + 1]], -1).transpose(0, 1)
    assert_close(found, expected.contiguous(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_widened_and_rounded_back(dtype: torch.dtype) -> None:
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    wide, back = torch.empty(65536), torch.empty(65536, dtype=dtype)
    run("widen", halves, wide, 65536, int(dtype == torch.bfloat16))
    run("round", wide, back, 65536, int(dtype == torch.bfloat16))
    assert_close(wide, halves.float(), rtol=0, atol=0, equal_nan=True)
    real = ~halves.isnan()
    assert_close(wide[real].signbit(), halves[real].signbit())
    assert_close(back[real].view(torch.int16), halves[real].view(torch.int16), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_numbers_are_rounded_to_the_nearest_half_and_ties_to_even(dtype: torch.dtype) -> None:
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).float()
    halves = halves[halves.isfinite()].sort().values
    between = ((halves[1:].double() + halves[:-1].double()) / 2).float()
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=torch.Generator().manual_seed(2)).int()
    ends = torch.tensor([65519.996, 65520.0, 65536.0, 3.4e38, 2.0**-25, 2.0**-24, 1e-45, 0.0, torch.inf, torch.nan])
    towards = [torch.nextafter(between, torch.full_like(between, end)) for end in (-torch.inf, torch.inf)]
    x = torch.cat([between, *towards, bits.view(torch.float32), ends, -ends])
    found = torch.empty(len(x), dtype=dtype)
    run("round", x, found, len(x), int(dtype == torch.bfloat16))
    expected = x.to(dtype)
    assert_close(found.isnan(), x.isnan())
    real = ~x.isnan()
    assert_close(found[real].view(torch.int16), expected[real].view(torch.int16), rtol=0, atol=0)


def test_powers_of_two_are_within_two_ulp_and_vanish_without_denormals() -> None:
    x = torch.cat([torch.linspace(-130, 10, 50_001), torch.tensor([0.0, -0.0, -126.0, -126.001, -1e30, -torch.inf])])
    found = torch.empty_like(x)
    run("powers", x, found, len(x))
    exact = torch.where(x < -126, 0.0, x.double().exp2())
    ulp = torch.where(exact > 0, torch.frexp(exact).exponent.double().sub(24).exp2(), 1.0)
    assert ((found - exact).abs() / ulp).max() <= 2
    assert_close(found[-6:], torch.tensor([1.0, 1.0, 2.0**-126, 0.0, 0.0, 0.0]), rtol=0, atol=0)


def test_lanes_exchange_numbers_as_documented() -> None:
    found = torch.zeros(6, 32, dtype=torch.int32)
    run("exchange", found)
    lane = torch.arange(32)
    votes = sum(1 << i for i in range(0, 32, 3))
    expected = [(lane + 5) % 32, lane ^ 9, torch.where(lane < 3, lane, lane - 3), lane // 8 * 8 + 2]
    assert_close(found[:4], torch.stack(expected).square().int(), rtol=0, atol=0)
    assert (found[4].long() & 0xFFFFFFFF).eq(votes).all()
    assert_close(found[5], torch.where(lane < 16, (lane ^ 1).square(), -1).int(), rtol=0, atol=0)


def test_copies_arrive_and_are_zero_where_nothing_is_real() -> None:
    given = torch.arange(64 * 4, dtype=torch.float32).view(64, 4) + 1
    found = torch.empty(64, 4)
    run("copy", given, found, 64)
    expected = given * torch.arange(64).remainder(2).eq(0)[:, None]
    assert_close(found, expected.flip(0), rtol=0, atol=0)


def test_memory_goes_around_a_block_in_the_order_of_its_barriers() -> None:
    found = torch.zeros(128, dtype=torch.int32)
    run("hand_around", found, 128)
    lane, warp = torch.arange(128) % 32, torch.arange(128) // 32
    assert_close(found, ((warp + 1) % 4 * 32 + (lane + 1) % 32).int(), rtol=0, atol=0)


def test_the_seed_decides_the_order_of_threads_and_every_barrier_changes_it() -> None:
    def order(seed: int) -> Tensor:
        cuda_kernels.seed(seed)
        to = torch.zeros(3, 2, 96, dtype=torch.int32)
        run("order", to, 3, 96)
        return to

    first, again, other = order(1), order(1), order(2)
    assert_close(first, again, rtol=0, atol=0)
    assert_close(first.sort(-1).values, torch.arange(96).expand(3, 2, 96).int(), rtol=0, atol=0)
    orders = torch.cat([first, other]).view(12, 96)
    assert len(orders.unique(dim=0)) == 12
    # Warps overtake each other too.
    assert (orders[0].view(3, 32) // 32).unique().numel() == 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_found_in_any_order(fault: str, seed: int) -> None:
    cuda_kernels.seed(seed)
    given, to = torch.zeros(256), torch.zeros(256)
    with (
        cuda_kernels.arrays(("to",), **{"from": given, "to": to}),
        pytest.raises(KernelFault, match=f"^error 719: block [01], thread .*({FAULTS[fault]})"),
    ):
        run("wrong", list(FAULTS).index(fault), given, to)


def test_every_fault_of_the_self_check_is_tried() -> None:
    source = (cuda_kernels.SHIM / "self_check.cu").read_text()
    assert re.findall(r"^    ([A-Z_]+),$", source, re.MULTILINE) == list(FAULTS)


def test_after_a_fault_the_machine_runs_on() -> None:
    given = torch.zeros(256)
    for fault in ("NEVER_WAITED", "SOME_AT_BARRIER", "TOO_DEEP"):
        with pytest.raises(KernelFault):
            run("wrong", list(FAULTS).index(fault), given, given)
        test_memory_goes_around_a_block_in_the_order_of_its_barriers()
        test_copies_arrive_and_are_zero_where_nothing_is_real()


@pytest.mark.parametrize(
    ("blocks", "threads", "shared", "error"),
    [(1, 1025, 0, 9), (1, 0, 0, 9), (2**31, 32, 0, 9), (-1, 32, 0, 9), (1, 32, (227 << 10) + 1, 1), (1, 32, -1, 1)],
)
def test_a_launch_beyond_what_a_gpu_has_is_refused(blocks: int, threads: int, shared: int, error: int) -> None:
    with pytest.raises(KernelFault, match=f"error {error}: {blocks} blocks of {threads} threads with {shared} bytes"):
        run("launch", blocks, threads, shared)


def test_no_blocks_are_no_launch() -> None:
    run("launch", 0, 32, 0)
    assert cuda_kernels.kernels("self_check.cu")


def test_the_shim_has_every_name_of_the_header_that_it_replaces() -> None:
    def names(path: Path) -> set[str]:
        text = re.sub(r"//.*", "", path.read_text())
        return set(
            re.findall(
                r"^(?:DEVICE|int|inline|struct|template.*\n(?:DEVICE|int))[\w\s*]* \**(\w+)(?:<\w+>)?[({ ]", text, re.M
            )
        )

    real = names(cuda_kernels.SOURCES / "ptx.cuh") - {"shared_address"}
    assert {"copy_async", "load_matrices_turned", "power_of_two", "launch"} <= real
    assert real <= names(cuda_kernels.SHIM / "ptx.cuh")
