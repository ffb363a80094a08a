"""The Transformer around an attention core: the one place of projections, heads, residuals, dropout and pooling.

Shapes: B batch, H heads, N tokens, D head dim, C model dim.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import Attention
from attention_zoo.ops.dropout import dropout
from lra.config import Model


class Dropout(nn.Dropout):
    """Dropout by the compiled generator where it serves."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


class MultiHead(nn.Module):
    """Multi-head attention over any core: (B, N, C), mask (B, N) or None -> (B, N, C).

    Only the projections that the core reads exist; where it reads no keys, the queries are the keys.
    """

    def __init__(self, attention: Attention, dim: int, bias: bool = True) -> None:
        super().__init__()
        inner = attention.heads * attention.head_dim
        self.attention = attention
        self.project = nn.ModuleDict({name: nn.Linear(dim, inner, bias) for name in attention.reads})
        self.out = nn.Linear(inner, dim, bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = {name: self.split(linear(x)) for name, linear in self.project.items()}
        q = heads["q"]
        y = self.attention(q, heads.get("k", q), heads["v"], mask)  # (B, H, N, D)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, N, C)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, H * D) -> (B, H, N, D)."""
        return x.unflatten(2, (self.attention.heads, self.attention.head_dim)).transpose(1, 2)


class Block(nn.Module):
    """Pre-LN: attention and a GELU feed-forward net, each in a residual branch."""

    def __init__(self, attention: Attention, dim: int, ffn: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.attend_norm = nn.LayerNorm(dim)
        self.attend = MultiHead(attention, dim, bias)
        self.think_norm = nn.LayerNorm(dim)
        self.think = nn.Sequential(
            nn.Linear(dim, ffn), nn.GELU(), Dropout(dropout), nn.Linear(ffn, dim), Dropout(dropout)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attend(self.attend_norm(x), mask))
        return x + self.think(self.think_norm(x))


class Positions(nn.Module):
    """Sines and cosines of the position, never trained: pairs of channels of wavelengths from 2 pi to 20,000 pi."""

    weight: Tensor

    def __init__(self, places: int, dim: int) -> None:
        super().__init__()
        wave = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000) / dim))
        angle = torch.arange(places)[:, None] * wave  # (N, C / 2)
        self.register_buffer("weight", torch.stack([angle.sin(), angle.cos()], 2).flatten(1), persistent=False)


class Encoder(nn.Module):
    """Token ids (B, N), mask (B, N) -> (B, N, C), zero where padded.

    With `cls`, a learned vector stands before the tokens and is always real: the result is (B, 1 + N, C).
    """

    def __init__(
        self, blocks: list[Block], vocab: int, seq_len: int, dim: int, dropout: float,
        positions: str = "learned", cls: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        places = seq_len + cls
        self.tokens = nn.Embedding(vocab, dim)
        self.cls = nn.Parameter(torch.zeros(dim)) if cls else None
        nn.init.normal_(self.tokens.weight, std=0.02)
        if positions == "learned":
            self.positions: nn.Embedding | Positions = nn.Embedding(places, dim)
            nn.init.normal_(self.positions.weight, std=0.02)
        else:
            self.positions = Positions(places, dim)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(tokens)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)
            mask = F.pad(mask, (1, 0), value=True)
        x = self.dropout(x + self.positions.weight[: x.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).masked_fill(~mask[..., None], 0)


class Classifier(nn.Module):
    """Encoder, pooling, head: ids (B, N), mask (B, N) -> logits (B, classes).

    Of pairs, ids and mask are (B, 2, N): one encoder reads both documents, and the head their vectors together.
    `pooling` is the mean over the real tokens, or the first position: the CLS where the encoder has one.
    """

    def __init__(
        self, encoder: Encoder, head: nn.Sequential, pooling: str = "mean", pairing: str | None = None
    ) -> None:
        """pairing: None where an example is one document, else how the vectors a, b of a pair are put together."""
        super().__init__()
        self.encoder, self.head = encoder, head
        self.pooling, self.pairing = pooling, pairing

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.pairing is None:
            return self.head(self.pooled(tokens, mask))
        a, b = self.pooled(tokens.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        return self.head(torch.cat([a, b, a * b, a - b] if self.pairing == "products" else [a, b], 1))

    def pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, N) -> (B, C)."""
        encoded = self.encoder(tokens, mask)
        if self.pooling != "mean":
            return encoded[:, 0]
        return encoded.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def transformer(
    attention: Callable[[], Attention], size: Model, vocab: int, classes: int, pairs: bool = False
) -> Classifier:
    """A classifier with a fresh attention core in every layer; the head is as wide as the feed-forward net.

    pairs: an example is two documents, whose vectors a and b `size.pairing` puts together: `products` is [a, b, a b,
    a - b], `plain` is [a, b] and a second hidden layer of half the width.
    """
    dim, ffn, pairing = size.dim, size.ffn, size.pairing if pairs else None
    blocks = [Block(attention(), dim, ffn, size.dropout, size.bias) for _ in range(size.layers)]
    first, *others = (block.attend.attention for block in blocks)
    for core in others:
        core.share_with(first)
    encoder = Encoder(blocks, vocab, size.seq_len, dim, size.dropout, size.positions, cls=size.pooling == "cls")
    widths = [{None: dim, "products": 4 * dim, "plain": 2 * dim}[pairing], ffn]
    if pairing == "plain":
        widths.append(max(ffn // 2, 1))
    hidden = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    head = nn.Sequential(*hidden, nn.Linear(widths[-1], classes))
    model = Classifier(encoder, head, size.pooling, pairing)
    if size.init == "xavier":
        draw_xavier(model)
    return model


def draw_xavier(model: Classifier) -> None:
    """Draw the weights around the cores anew: tokens N(0, 1), maps Xavier-uniform, biases 0. A core keeps its own."""
    nn.init.normal_(model.encoder.tokens.weight)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and ".attention." not in name:
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers in the model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
