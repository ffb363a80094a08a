"""`python -m tests.gpu.all_kernels`: every operator in every dtype, dimension and block size, for compute-sanitizer.

Small, because each access to memory is watched; lengths that no block size divides, because the ends go wrong first.
"""

from __future__ import annotations

import sys

import torch

from attention_zoo.mra2 import MRA2
from attention_zoo.ops import kernels

from .cases import Case, block_sparse, coarse, example


def main(device: torch.device) -> int:
    """Run on `device`; returns the exit code. Results are not looked at: they are what the tests are for."""
    torch.manual_seed(0)
    ran = 0
    for dtype in kernels.DTYPES:
        for dim in kernels.CUDA_DIMS:
            for block_size in kernels.CUDA_BLOCK_SIZES:
                given = example(Case(2, 2 * block_size + 5, dim, block_size, density=0.6), device, dtype)
                block_sparse(given)
                coarse(given)
                core = MRA2(2, dim, 3 * block_size, block_size=block_size, blocks_per_row=1, first_blocks=1)
                mask = None if given.mask is None else given.mask[:1]
                core(given.q[None], given.k[None], given.v[None], mask)
                ran += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    print(f"ran {ran} combinations of dtype, dimension and block size on {device}")
    return 0


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print(f"tests.gpu.all_kernels: torch {torch.__version__} finds no GPU", file=sys.stderr)
        sys.exit(2)
    with kernels.use("cuda"):
        sys.exit(main(torch.device("cuda", 0)))
