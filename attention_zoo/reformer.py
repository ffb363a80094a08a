from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Attention, whole
from .functional import tame
from .ops.sorted_chunks import Lines, sorted_chunks_attention

# More would cost more than the attention itself, and grow with the length: 2 seq_len / chunk is 128 at 4,096 tokens.
MOST_BUCKETS = 128


class Reformer(Attention):
    """Reformer: softmax attention among the tokens that a random hash of their queries puts into one bucket.

    Kitaev et al., "Reformer: The Efficient Transformer", 2020. https://arxiv.org/abs/2001.04451
    Keys are the queries at length 1, k_j = q_j / |q_j|; logits are q_i . k_j, as in the authors' code. Round r hashes a
    token by h_r(q) = argmax [q R_r, -q R_r], sorts by (h_r, position) and cuts chunks; P_i^r are the other tokens with
    i's hash in i's chunk and the one before. A token attends to the union of its P_i^r, to itself where that is empty.
    Cost O(rounds N (chunk + buckets) D) and a sort.
    Deviations: bidirectional; a pair counts in the first round that has it, the same sum as 1 / N_ij in each of N_ij
    rounds; only rounds whose chunks have the pair count; padding is sorted last, into a bucket of its own.
    The code of the published LRA runs differs from both: it attends across buckets, its first chunk looks back to the
    last one, and a pair counts N_ij times.
    No exact limit: keys are the queries, and a token does not see itself.
    """

    reads = "qv"
    resamples = True
    rotations: Tensor

    def __init__(
        self,
        heads: int,
        head_dim: int,
        seq_len: int,
        *,
        rounds: int = 2,
        chunk: int = 64,
        buckets: int | None = None,
        across_buckets: bool = False,
    ) -> None:
        """buckets: an even number; None: 2^floor(log2(2 seq_len / chunk)), as published, from 2 to 128.
        across_buckets: P_i^r are all others of the two chunks."""
        super().__init__(heads, head_dim, seq_len)
        self.rounds = whole("rounds", rounds, least=1)
        self.chunk = whole("chunk", chunk, least=1)
        if buckets is None:
            buckets = min(2 ** (max(2, 2 * self.seq_len // self.chunk).bit_length() - 1), MOST_BUCKETS)
        self.buckets = whole("buckets", buckets, least=2)
        if buckets % 2:
            raise ValueError(f"buckets={buckets} must be even")
        if not isinstance(across_buckets, bool):
            raise ValueError(f"across_buckets={across_buckets!r} must be true or false")
        self.across_buckets = across_buckets
        self.register_buffer("rotations", self._draw())

    def _draw(self, device: torch.device | None = None) -> Tensor:
        """(rounds, H, D, buckets / 2): R of each round and head."""
        return torch.randn(self.rounds, self.heads, self.head_dim, self.buckets // 2, device=device)

    def kernel(self, device: torch.device) -> str:
        return "reference"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, dim = q.shape
        chunk = min(self.chunk, length)
        missing = -length % chunk
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            real = q.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
            real = F.pad(real, (0, missing))
            query, value = (F.pad(x.to(dtype), (0, 0, 0, missing)) for x in (q, v))  # (B, H, N, D)
            calm = tame(query, value)
            query, value = (torch.where(calm, x, 0.0) for x in (query, value))
            norm = torch.linalg.vector_norm(query, dim=-1, keepdim=True)
            key = query / norm.masked_fill(norm == 0, 1.0)
            lines = self._lines(self._hash(query.detach(), real).flatten(1, 2), chunk, dtype)
            query, key, value = (x.flatten(0, 2) for x in (query, key, value))  # (B H N, D)
            out = sorted_chunks_attention(query, key, value, lines, chunk).view(batch, heads, -1, dim)
            # The first chunk of a head looks back at the last one of another.
            return torch.where(calm, out, math.nan)[:, :, :length].to(v.dtype)

    def _hash(self, q: Tensor, real: Tensor) -> Tensor:
        """(rounds, B, H, N) the bucket of each token, `self.buckets` where real (B, N) is not."""
        rotations = self._draw(q.device) if self.training else self.rotations
        turned = q @ rotations[:, None].to(q.dtype)  # (rounds, B, H, N, buckets / 2)
        (high, plus), (low, minus) = turned.max(-1), turned.min(-1)
        bucket = torch.where(high < -low, minus + self.buckets // 2, plus)
        return bucket.masked_fill(~real[:, None], self.buckets)

    def _lines(self, buckets: Tensor, chunk: int, dtype: torch.dtype) -> Lines:
        """Sort buckets (rounds, G, N) by (head, bucket, position); N is a multiple of chunk."""
        rounds, heads, length = buckets.shape
        row = torch.arange(rounds * heads, device=buckets.device).view(rounds, heads, 1)
        # One stable sort of all rounds and heads, a radix sort on a CPU.
        order = (row * (self.buckets + 1) + buckets).flatten().sort(stable=True).indices
        order = order.view(rounds, -1) % (heads * length)  # (rounds, G N)
        place = torch.arange(heads * length, device=buckets.device).expand(rounds, -1)
        rank = torch.empty_like(order).scatter_(1, order, place)

        if self.across_buckets:
            buckets = buckets.masked_fill(buckets < self.buckets, 0)
        # Neighbouring heads of a line share no code.
        codes = (buckets + row % 2 * (self.buckets + 1)).flatten(1)
        # In a head, chunks never fall as buckets rise: spans of two buckets are at least 2 apart.
        spans = rank % length // chunk + 2 * codes
        return Lines(order, rank, codes.gather(1, order).to(dtype), spans.to(dtype))
