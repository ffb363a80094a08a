from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Attention, whole


class Soft(Attention):
    """SOFT: attention by a Gaussian kernel of the queries, A M^-1 (A^T v) over learned landmarks, without a softmax.

    Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", 2021. https://arxiv.org/abs/2110.11945
    Cost O(N M D + M^3). A (N, M) is the kernel of tokens and landmarks, M (M, M) that of landmarks and landmarks; its
    inverse is a fixed number of Newton steps. Landmarks are a convolution over windows of q / D^(1/4), normed, GELU.
    Deviations: Newton starts from each head's own norm, half as large, so that it always converges; a window's sum is
    divided by its share of real tokens, and a window without any is no landmark.
    No exact limit: it approximates a Gaussian kernel, not softmax.
    """

    reads = "qv"
    normalised = False

    def __init__(self, heads: int, head_dim: int, seq_len: int, *, landmarks: int = 64, iterations: int = 20) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.landmarks = whole("landmarks", landmarks, least=1)
        self.iterations = whole("iterations", iterations, least=0)
        self.window = -(-seq_len // landmarks)
        self.convolution = nn.Conv1d(head_dim, head_dim, self.window, stride=self.window, bias=False)
        self.norm = nn.LayerNorm(head_dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        if mask is None:
            mask = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device)
        with torch.autocast(q.device.type, enabled=False):
            q, values = q.to(dtype) * self.head_dim**-0.25, v.to(dtype)
            landmarks, real = self.summarise(q, mask)  # (B, H, M, D), (B, 1, M, 1)
            a = gaussian(q, landmarks)  # (B, H, N, M)
            eye = torch.eye(landmarks.shape[2], dtype=dtype, device=q.device)
            m = torch.where(real & real.mT, gaussian(landmarks, landmarks), eye)
            summary = (a.mT @ values).masked_fill(~real, 0.0)  # (B, H, M, D)
            return (a @ (inverse(m, self.iterations) @ summary)).to(v.dtype)

    def summarise(self, q: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks (B, H, M, D), one for each window of tokens, and which of them are real (B, 1, M, 1)."""
        padding = -q.shape[2] % self.window
        count = F.pad(mask, (0, padding)).unflatten(1, (-1, self.window)).sum(-1)[:, None, :, None]  # (B, 1, M, 1)
        windows = F.pad(q, (0, 0, 0, padding)).unflatten(2, (-1, self.window)).flatten(3)  # (B, H, M, window D)
        weight = self.convolution.weight.to(q.dtype).permute(2, 1, 0).flatten(0, 1)  # (window D, D)
        sums = windows @ weight * (self.window / count.clamp(min=1).to(q.dtype))
        norm = self.norm
        normed = F.layer_norm(sums, sums.shape[3:], norm.weight.to(q.dtype), norm.bias.to(q.dtype), norm.eps)
        return F.gelu(normed), count > 0


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x - y|^2 / 2) of all rows of x (B, H, N, D) and y (B, H, M, D): (B, H, N, M)."""
    # One product of longer rows: x y - |x|^2 / 2 - |y|^2 / 2. In base 2, as torch's exp on a CPU is slow at underflow.
    half_x, half_y = (z.square().sum(-1, keepdim=True) / -2 for z in (x, y))
    left = torch.cat([x, half_x, torch.ones_like(half_x)], -1) * math.log2(math.e)
    return (left @ torch.cat([y, torch.ones_like(half_y), half_y], -1).mT).exp2()


def inverse(matrix: Tensor, iterations: int) -> Tensor:
    """V after so many Newton steps towards the inverse of M = matrix (B, H, M, M), symmetric and positive semidefinite.

    V <- 2 V - V M V from V = M / |M|_inf^2, so that E = I - V M has its eigenvalues in [0, 1): it always converges.
    """
    m = matrix.flatten(0, 1)
    v = m / m.sum(-1).amax(-1).square()[:, None, None]
    identity = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    rests = torch.zeros(len(m), 1, 1, dtype=torch.bool, device=m.device)
    for _ in range(iterations):
        vm = v @ m
        # A step squares E. A head in which that made it rounding rests: through further steps its gradient would shrink
        # to numbers so small that products of them are ten times slower on a CPU.
        v = torch.where(rests, v, torch.baddbmm(v, vm, v, beta=2, alpha=-1))
        rests = (identity - vm.detach()).abs().sum(-1).amax(-1)[:, None, None] < torch.finfo(m.dtype).eps ** 0.5
    return v.unflatten(0, matrix.shape[:2])
