"""What the study of approximation times: an attention core on given q, k, v, and the projections around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.studies.errors import core_of, errors
from benchmarks.studies.inputs import QKV
from benchmarks.studies.sweeps import Choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Tokens of what is run once before memory is measured.
FEW = 64


class Given(NamedTuple):
    """Inputs, what softmax makes of them, (I, H, N, D) float64, its entropy in nats, (I, H), and the dtype in which an
    attention gets them."""

    qkv: QKV
    exact: np.ndarray
    entropy: np.ndarray
    dtype: str

    def cut(self) -> Given:
        """The first tokens of the first instance."""
        q, k, v = (np.ascontiguousarray(x[:1, :, :FEW]) for x in self.qkv[1:4])
        mask = None if self.qkv.mask is None else np.ascontiguousarray(self.qkv.mask[:1, :FEW])
        return self._replace(qkv=self.qkv._replace(q=q, k=k, v=v, mask=mask), exact=self.exact[:1, :, :FEW])


def rounded(qkv: QKV, dtype: str) -> QKV:
    """The inputs as they are in `dtype`, in float32 again."""
    import torch

    if dtype == "float32":
        return qkv
    q, k, v = (torch.from_numpy(x).to(getattr(torch, dtype)).float().numpy() for x in qkv[1:4])
    return qkv._replace(q=q, k=k, v=v)


class Core:
    """An attention core: its forward, and its step, the gradients of q, k, v and of its own weights."""

    def __init__(self, choice: Choice, given: Given, device: torch.device) -> None:
        import torch

        self.given, self.device = given, device
        self.core = core_of(choice, given.qkv).to(device)
        placed = [torch.from_numpy(x).to(device, getattr(torch, given.dtype)) for x in given.qkv[1:4]]
        self.mask = None if given.qkv.mask is None else torch.tensor(given.qkv.mask, device=device)
        generator = torch.Generator().manual_seed(0)
        self.upstream = torch.randn(placed[0].shape, generator=generator).to(placed[0])
        self.plain: list[Tensor] = placed
        self.learned: list[Tensor] = [x.detach().requires_grad_() for x in placed]
        self.parts = {"forward": self.forward, "step": self.step}

    def forward(self) -> Tensor:
        import torch

        with torch.no_grad():
            out: Tensor = self.core(*self.plain, self.mask)
        return out

    def step(self) -> tuple[Tensor | None, ...]:
        import torch

        out = self.core(*self.learned, self.mask)
        # A variant may read no keys.
        return torch.autograd.grad(out, [*self.learned, *self.core.parameters()], self.upstream, allow_unused=True)

    def facts(self) -> dict[str, Any]:
        """The errors (I, H) and the kernel."""
        found = errors(self.forward(), self.given.exact, self.given.qkv.mask)
        return {"errors": found, "kernel": self.core.kernel(self.device) or ""}


class Projections:
    """What a layer has around its attention: the projections of q, k, v and of the output, H * D channels each."""

    def __init__(self, given: Given, device: torch.device) -> None:
        import torch

        instances, heads, length, dim = given.qkv.q.shape
        channels, dtype = heads * dim, getattr(torch, given.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.x = torch.randn(instances, length, channels).to(device, dtype).requires_grad_()
            self.upstream = torch.randn(instances, length, channels).to(device, dtype)
            self.linear = torch.nn.ModuleList(torch.nn.Linear(channels, channels) for _ in range(4)).to(device, dtype)
        self.parts = {"forward": self.forward, "step": self.step}

    def project(self) -> list[Tensor]:
        q, k, v, out = self.linear
        return [q(self.x), k(self.x), out(v(self.x))]

    def forward(self) -> list[Tensor]:
        import torch

        with torch.no_grad():
            return self.project()

    def step(self) -> tuple[Tensor, ...]:
        import torch

        return torch.autograd.grad(self.project(), [self.x, *self.linear.parameters()], [self.upstream] * 3)

    def facts(self) -> dict[str, Any]:
        return {"errors": None, "kernel": ""}


def work(choice: Choice, given: Given, device: torch.device) -> Core | Projections:
    """What is timed of a variant, of `softmax` or `eager`, or of the `projections` of a layer."""
    return Projections(given, device) if choice.attn == "projections" else Core(choice, given, device)
