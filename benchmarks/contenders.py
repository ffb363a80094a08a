"""What benchmarks/kernel.py times at one size: MRA-2, its phases, and the attentions beside it, on the same q, k, v."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.counted import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_SIZE, BLOCKS_PER_ROW = 32, 8
HEADS_OF_AN_EXAMPLE = 2
FAMILIES = ("reference", "sdpa", "flex")
BACKENDS = {
    "sdpa flash": "FLASH_ATTENTION",
    "sdpa efficient": "EFFICIENT_ATTENTION",
    "sdpa cudnn": "CUDNN_ATTENTION",
    "sdpa math": "MATH",
}
# Never recorded as a graph: what needs too much memory to be held twice, and what the shares of others refer to.
EAGER_ONLY = ("reference", "sdpa math", "copy", "matmul")


class Setting(NamedTuple):
    """A size. `heads` are those of all examples."""

    length: int
    heads: int
    head_dim: int
    dtype: str

    @property
    def batch(self) -> int:
        return self.heads // self.heads_of_an_example

    @property
    def heads_of_an_example(self) -> int:
        return HEADS_OF_AN_EXAMPLE if self.heads % HEADS_OF_AN_EXAMPLE == 0 else 1

    @property
    def shape(self) -> Shape:
        number = 4 if self.dtype == "float32" else 2
        return Shape(self.heads, self.length, self.head_dim, BLOCK_SIZE, BLOCKS_PER_ROW, number)


def names(device: str, families: Sequence[str]) -> list[str]:
    """The attentions of some families: on a GPU softmax has backends, on a CPU torch has one that it takes."""
    its = {"reference": ["reference"], "sdpa": list(BACKENDS) if device == "cuda" else ["sdpa"], "flex": ["flex"]}
    return ["mra2", *(name for family in families for name in its[family])]


class Inputs:
    """q, k, v and the gradient of the output, (B, H, N, D), and MRA-2 for them."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        import torch

        from attention_zoo.mra2 import MRA2

        torch.manual_seed(0)
        heads = setting.heads_of_an_example
        self.core = MRA2(heads, setting.head_dim, setting.length, block_size=BLOCK_SIZE, blocks_per_row=BLOCKS_PER_ROW)
        shape = setting.batch, heads, setting.length, setting.head_dim
        drawn = [torch.randn(shape, device=device, dtype=getattr(torch, setting.dtype)) for _ in range(4)]
        self.qkv: list[Tensor] = [x.requires_grad_() for x in drawn[:3]]
        self.upstream = drawn[3]

    @property
    def plain(self) -> list[Tensor]:
        """q, k, v without gradients."""
        return [x.detach() for x in self.qkv]

    def works(self, name: str) -> dict[str, Callable[[], Any]]:
        """The attention's forward, which returns its output, and its step, which returns the gradients of q, k, v.

        Both are called within `context(name)`, which is no part of what is timed.
        """
        import torch

        attention = self._attention(name)

        def forward() -> Tensor:
            with torch.no_grad():
                return attention(*self.plain)

        def step() -> tuple[Tensor, ...]:
            return torch.autograd.grad(attention(*self.qkv), self.qkv, self.upstream)

        return {"forward": forward, "step": step}

    def _attention(self, name: str) -> Callable[..., Tensor]:
        from torch.nn.functional import scaled_dot_product_attention

        if name == "flex":
            return self._flex()
        return self.core if name in ("mra2", "reference") else scaled_dot_product_attention

    def _flex(self) -> Callable[..., Tensor]:
        """FlexAttention of the chosen pairs, each a full block of its mask, which is made once."""
        import torch
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        # Compiled anew at each size: after a few sizes torch would refuse to.
        torch.compiler.reset()
        q, k, _ = self.plain
        pairs = self.core.choose(q, k, None)
        count = -(-q.shape[2] // BLOCK_SIZE)
        chosen = torch.zeros(*pairs.shape[:2], (count + 1) * count, dtype=torch.int32, device=q.device)
        chosen = chosen.scatter(-1, pairs[..., 0] * count + pairs[..., 1], 1)[..., : count**2]
        chosen = chosen.unflatten(-1, (count, count))
        full = chosen.sum(-1, dtype=torch.int32), chosen.argsort(dim=-1, descending=True, stable=True).int()
        partial_blocks = torch.zeros_like(full[0]), torch.zeros_like(full[1])
        length = q.shape[2]
        mask = BlockMask.from_kv_blocks(*partial_blocks, *full, BLOCK_SIZE=BLOCK_SIZE, seq_lengths=(length, length))
        if q.device.type == "cpu":
            return partial(torch.compile(flex_attention, fullgraph=True, dynamic=False), block_mask=mask)
        # By default its kernels take tiles of 64 and 128 tokens, which blocks of 32 do not hold: only tuning offers 32.
        tuned = torch.compile(flex_attention, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")
        tiles: Any = {"fwd_BLOCK_M": BLOCK_SIZE, "fwd_BLOCK_N": BLOCK_SIZE}
        return partial(tuned, block_mask=mask, kernel_options=tiles)

    def phases(self) -> dict[tuple[str, str], Callable[[], Any]]:
        """The phases of MRA-2. The coarse one is the whole operator without any pair: it has virtual keys alone."""
        import torch

        q4, k4, _ = self.plain
        q, k, v = (x.flatten(0, 1) for x in self.plain)
        upstream = self.upstream.flatten(0, 1)
        ops, rest = torch.ops.zoo, (BLOCK_SIZE, None)
        pairs = self.core.choose(q4, k4, None).flatten(0, 1)
        none = torch.tensor([-(-q.shape[1] // BLOCK_SIZE), 0], device=q.device).repeat(len(q), 1, 1)
        out, lse, *priors = ops.coarse_attention(q, k, v, pairs, *rest)
        alone = ops.coarse_attention(q, k, v, none, *rest)
        zeros = torch.zeros_like(lse)
        return {
            ("choice", "forward"): lambda: self.core.choose(q4, k4, None),
            ("coarse", "forward"): lambda: ops.coarse_attention(q, k, v, none, *rest),
            ("block", "forward"): lambda: ops.block_sparse_attention(q, k, v, pairs, *rest, *priors),
            ("block", "backward"): lambda: ops.block_sparse_attention_backward(
                upstream, zeros, q, k, v, out, lse, pairs, *rest, *priors
            ),
            ("coarse", "backward"): lambda: ops.coarse_attention_backward(upstream, q, k, v, *alone, none, *rest),
        }

    def expected(self, name: str) -> dict[str, tuple[Tensor, ...]]:
        """The output and the gradients that MRA-2 and FlexAttention must give, by the references in float32."""
        import torch

        from attention_zoo.ops.block_sparse import attend_pairs

        q, k, v = exact = [x.float().requires_grad_() for x in self.plain]
        with context("reference"):
            if name == "mra2":
                out = self.core(q, k, v)
            else:
                out = attend_pairs(q, k, v, None, self.core.choose(q.detach(), k.detach(), None), BLOCK_SIZE)
            gradients = torch.autograd.grad(out, exact, self.upstream.float())
        return {"forward": (out.detach(),), "step": gradients}


def context(name: str) -> AbstractContextManager[Any]:
    """In which an attention runs, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from attention_zoo.ops import kernels

    if name == "reference":
        return kernels.use("reference")
    return sdpa_kernel(getattr(SDPBackend, BACKENDS[name])) if name in BACKENDS else nullcontext()
