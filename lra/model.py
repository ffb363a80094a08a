"""The Transformer around an attention core: the one place of projections, heads, residuals, dropout and pooling.

Shapes: B batch, H heads, N tokens, D head dim, C model dim.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from attention_zoo.base import Attention


class MultiHead(nn.Module):
    """Multi-head attention over any core: (B, N, C), mask (B, N) or None -> (B, N, C).

    Only the projections that the core reads exist; where it reads no keys, the queries are the keys.
    """

    def __init__(self, attention: Attention, dim: int) -> None:
        super().__init__()
        inner = attention.heads * attention.head_dim
        self.attention = attention
        self.project = nn.ModuleDict({name: nn.Linear(dim, inner) for name in attention.reads})
        self.out = nn.Linear(inner, dim)

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

    def __init__(self, attention: Attention, dim: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attend_norm = nn.LayerNorm(dim)
        self.attend = MultiHead(attention, dim)
        self.think_norm = nn.LayerNorm(dim)
        self.think = nn.Sequential(
            nn.Linear(dim, ffn), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn, dim), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attend(self.attend_norm(x), mask))
        return x + self.think(self.think_norm(x))


class Encoder(nn.Module):
    """Token ids (B, N), mask (B, N) -> (B, N, C), zero where padded. Learned absolute positions."""

    def __init__(self, blocks: list[Block], vocab: int, seq_len: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, dim)
        self.positions = nn.Embedding(seq_len, dim)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).masked_fill(~mask[..., None], 0)


class Classifier(nn.Module):
    """Encoder, mean over the real tokens, two-layer head: ids (B, N), mask (B, N) -> logits (B, classes)."""

    def __init__(self, encoder: Encoder, dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(1, keepdim=True).clamp(min=1)
        mean = self.encoder(tokens, mask).sum(1) / count  # (B, C)
        return self.head(mean)


def transformer(
    attention: Callable[[], Attention],
    *,
    layers: int,
    dim: int,
    ffn: int,
    dropout: float,
    seq_len: int,
    vocab: int,
    classes: int,
) -> Classifier:
    """A classifier with a fresh attention core in every layer; the head is as wide as the feed-forward net."""
    blocks = [Block(attention(), dim, ffn, dropout) for _ in range(layers)]
    first, *others = (block.attend.attention for block in blocks)
    for core in others:
        core.share_with(first)
    return Classifier(Encoder(blocks, vocab, seq_len, dim, dropout), dim, ffn, classes)


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers in the model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
