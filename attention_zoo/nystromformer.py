from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Attention, whole


class Nystromformer(Attention):
    """Nyströmformer: softmax attention by way of M landmarks, K1 pinv(K2) (K3 v), each K a softmax of its own.

    Xiong et al., "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention", 2021.
    https://arxiv.org/abs/2102.03902
    Cost O(N M D + M^3). K1 is of queries and landmark keys, K2 of landmark queries and keys, K3 of landmark queries and
    keys; pinv is a fixed number of steps of its own iteration.
    Deviations: the segments split the real tokens of each example; an example of at most M tokens has each token as a
    landmark and is exactly softmax; pinv starts from each head's own norms, as the paper has it and public copies do
    not; the paper's convolution of the values is `Convolved`.
    """

    normalised = False

    def __init__(self, heads: int, head_dim: int, seq_len: int, *, landmarks: int = 64, iterations: int = 6) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.landmarks = whole("landmarks", landmarks, least=1)
        self.iterations = whole("iterations", iterations, least=0)

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, int]:
        return {"landmarks": seq_len}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, length = q.shape[0], q.shape[2]
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            q, k, values = (x.to(dtype) for x in (q, k, v))
            if mask is None and length > self.landmarks and length % self.landmarks == 0:
                # Every example has full segments of one size.
                q_mean, k_mean = (x.unflatten(2, (self.landmarks, -1)).mean(3) for x in (q, k))
                summary = self.summarise(q_mean, k_mean, k, values, None)
                return F.scaled_dot_product_attention(q, k_mean, summary).to(v.dtype)
            if mask is None:
                mask = torch.ones(batch, length, dtype=torch.bool, device=q.device)
            count = mask.sum(-1, keepdim=True)  # (B, 1)
            q_mean, k_mean = self.means(q, k, mask)  # (B, H, M, D)

            # An example without a real token looks at all its places, which are 0, and at one landmark.
            seen = mask | (count == 0)
            summary = self.summarise(q_mean, k_mean, k, values, seen[:, None, None, :])

            place = torch.arange(self.landmarks, device=q.device).expand(batch, -1)
            token = torch.searchsorted(mask.cumsum(-1), place + 1).clamp(max=length - 1)  # (B, M) the first M real
            own = values.gather(2, token[:, None, :, None].expand_as(summary))
            summary = torch.where((count <= self.landmarks)[:, None, None], own, summary)
            filled = place < count.clamp(min=1)
            return F.scaled_dot_product_attention(q, k_mean, summary, attn_mask=filled[:, None, None, :]).to(v.dtype)

    def summarise(self, q_mean: Tensor, k_mean: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """pinv(K2) (K3 v), (B, H, M, D): what stands for the values at the landmarks."""
        summary = F.scaled_dot_product_attention(q_mean, k, v, attn_mask=seen)  # K3 v
        middle = (q_mean @ k_mean.mT / math.sqrt(self.head_dim)).softmax(-1)  # K2 (B, H, M, M)
        return pseudo_inverse(middle, self.iterations) @ summary

    def means(self, q: Tensor, k: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks (B, H, M, D): means over M segments of each example's real tokens; 0 for a segment without any.

        Of n real tokens, that of rank r is in segment floor(r M / n), or r where n <= M.
        """
        batch, heads, length, dim = q.shape
        rank = (mask.cumsum(-1) - 1).clamp(min=0)  # (B, N)
        segment = rank * self.landmarks // mask.sum(-1, keepdim=True).clamp(min=self.landmarks)
        member = q.new_zeros(batch, self.landmarks, length).scatter(1, segment[:, None], mask[:, None].to(q.dtype))
        size = member.sum(-1, keepdim=True).clamp(min=1.0)  # (B, M, 1)
        means = (member @ x.transpose(1, 2).flatten(2) / size for x in (q, k))  # (B, M, H D)
        q_mean, k_mean = (x.unflatten(2, (heads, dim)).transpose(1, 2) for x in means)
        return q_mean, k_mean


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Z after so many steps towards the pseudo-inverse of A = matrix (B, H, M, M), whose rows sum to 1.

    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from Z = A^T / (|A|_1 |A|_inf), where |A|_inf = 1.
    """
    a = matrix.flatten(0, 1)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
    z = a.mT / a.sum(1).amax(-1)[:, None, None]
    for _ in range(iterations):
        az = a @ z
        step = torch.baddbmm(identity, az, 7 * identity - az, beta=15, alpha=-1)
        step = torch.baddbmm(identity, az, step, beta=13, alpha=-1)
        z = z @ step / 4
    return z.unflatten(0, matrix.shape[:2])
