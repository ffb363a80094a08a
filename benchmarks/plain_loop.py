"""A plain training loop of the Long Range Arena, as the public ones in PyTorch are, for benchmarks/baseline_loop.py.

Written anew after the published facts of the LRA code of the Nyströmformer and MRA papers' authors (Xiong et al., 2021;
Zeng et al., 2022), nothing copied. From there: an example is a Python item, padded to the longest length when it is
read, and a torch DataLoader collates items one by one; every batch is as long as the model; masks are numbers of which
a large multiple is taken from the scores; all scores, kernel matrices and features are materialised by matmul and
einsum; torch's own dropout, of the attention's probabilities too in softmax; AdamW and OneCycleLR of torch; a batch
goes through in parts that fit, whose gradients add up. What is chosen in its favour on a CPU: no workers, which lose
time on few cores; no recomputation of activations, which theirs has for softmax; float32 and not half precision.

The mathematics is that of lra/model.py and the attention zoo, where the public loops differ from it (means over
padding, landmarks that average padding, a temperature applied twice), so that from equal weights both learn the same.
Shapes: B batch, H heads, N tokens, D head dim, C model dim, M landmarks, features or rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lra.config import Config
from lra.data import Split

ATTENTIONS = ("softmax", "nystromformer", "performer", "linformer")


class Items(Dataset[dict[str, Tensor]]):
    """The examples of a split, each padded to `length` tokens; longer documents are cut to `longest`."""

    def __init__(self, split: Split, longest: int, length: int) -> None:
        if split.pairs is not None:
            raise ValueError("the plain loop reads single documents, not pairs")
        self.split, self.longest, self.length = split, longest, length

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start, end = self.split.offsets[index : index + 2]
        document = self.split.tokens[start : min(end, start + self.longest)]
        tokens = np.zeros(self.length, dtype=np.int32)
        tokens[: len(document)] = document
        mask = np.zeros(self.length, dtype=np.float32)
        mask[: len(document)] = 1.0
        label = int(self.split.labels[index])
        return {
            "tokens": torch.tensor(tokens, dtype=torch.long),
            "mask": torch.tensor(mask),
            "label": torch.tensor(label),
        }


class SoftmaxCore(nn.Module):
    """softmax(Q K^T / sqrt(D) - 10^6 (1 - mask)) V, with dropout of the probabilities."""

    def __init__(self, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.head_dim)  # (B, H, N, N)
        scores = scores - 1e6 * (1.0 - mask[:, None, None, :])
        return torch.matmul(self.dropout(F.softmax(scores, dim=-1)), v)


class NystromCore(nn.Module):
    """K1 pinv(K2) (K3 V), all four materialised; M landmarks over the real tokens, of which there must be M."""

    def __init__(self, head_dim: int, landmarks: int, iterations: int) -> None:
        super().__init__()
        self.head_dim, self.landmarks, self.iterations = head_dim, landmarks, iterations

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scale = math.sqrt(math.sqrt(self.head_dim))
        q, k = q * mask[:, None, :, None] / scale, k * mask[:, None, :, None] / scale
        q_marks, k_marks = self.segment_means(q, mask), self.segment_means(k, mask)  # (B, H, M, D)
        kernel_1 = F.softmax(torch.matmul(q, k_marks.transpose(-1, -2)), dim=-1)  # (B, H, N, M)
        kernel_2 = F.softmax(torch.matmul(q_marks, k_marks.transpose(-1, -2)), dim=-1)  # (B, H, M, M)
        scores = torch.matmul(q_marks, k.transpose(-1, -2))  # (B, H, M, N)
        kernel_3 = F.softmax(scores - 1e9 * (1.0 - mask[:, None, None, :]), dim=-1)
        left = torch.matmul(kernel_1, self.inverse(kernel_2))
        return torch.matmul(left, torch.matmul(kernel_3, v))

    def segment_means(self, x: Tensor, mask: Tensor) -> Tensor:
        """Means over M runs of the real tokens: that of rank r among n is in run floor(r M / n). Padding comes last."""
        batch, heads, length, dim = x.shape
        count = mask.sum(1).long()[:, None]  # (B, 1)
        rank = torch.arange(length, device=x.device)[None]
        run = (rank * self.landmarks // count).clamp(max=self.landmarks - 1)  # (B, N), where padded: rows of zeros
        place = (run + self.landmarks * torch.arange(batch, device=x.device)[:, None]).flatten()
        sums = x.new_zeros(batch * self.landmarks, heads * dim)
        sums = sums.index_add(0, place, x.transpose(1, 2).reshape(batch * length, heads * dim))
        sizes = x.new_zeros(batch * self.landmarks).index_add(0, place, mask.flatten().to(x.dtype))
        means = (sums / sizes[:, None]).reshape(batch, self.landmarks, heads, dim)
        return means.transpose(1, 2)

    def inverse(self, a: Tensor) -> Tensor:
        """(B, H, M, M) towards the pseudo-inverse, by an iteration of the third order."""
        eye = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
        z = a.transpose(-1, -2) / a.sum(-2).max(-1).values[..., None, None]
        for _ in range(self.iterations):
            az = torch.matmul(a, z)
            inner = 15 * eye - torch.matmul(az, 7 * eye - az)
            z = torch.matmul(0.25 * z, 13 * eye - torch.matmul(az, inner))
        return z


class PerformerCore(nn.Module):
    """Positive random features of Q and K, materialised; `directions` (M, D) are given."""

    directions: Tensor

    def __init__(self, head_dim: int, directions: Tensor) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer("directions", directions)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        real = mask[:, None, :, None]
        q, k, v = q * real, k * real, v * real
        q_features = self.features(q, keys=False)  # (B, H, N, M)
        k_features = self.features(k, keys=True) * real
        inverse = 1.0 / torch.einsum("bhnm,bhm->bhn", q_features, k_features.sum(dim=-2))
        context = torch.einsum("bhnm,bhnd->bhmd", k_features, v)
        return torch.einsum("bhmd,bhnm,bhn->bhnd", context, q_features, inverse)

    def features(self, x: Tensor, keys: bool) -> Tensor:
        """exp(w.x' - |x'|^2 / 2 - stabiliser) / sqrt(M); the stabiliser of queries is each one's own."""
        directions = self.directions[None, None].expand(x.shape[0], x.shape[1], -1, -1)
        dots = torch.einsum("bhnd,bhmd->bhnm", x * self.head_dim**-0.25, directions)
        half = (x**2).sum(dim=-1, keepdim=True) / (2 * math.sqrt(self.head_dim))
        largest = dots.amax(dim=(-1, -2), keepdim=True) if keys else dots.amax(dim=-1, keepdim=True)
        return self.directions.shape[0] ** -0.5 * torch.exp(dots - half - largest.detach())


class LinformerCore(nn.Module):
    """softmax(Q (E K)^T / sqrt(D)) E V; E (H, M, N) is one for keys, values and all layers."""

    def __init__(self, head_dim: int, projection: nn.Parameter) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.projection = projection

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        k = torch.matmul(self.projection, k * mask[:, None, :, None])  # (B, H, M, D)
        v = torch.matmul(self.projection, v * mask[:, None, :, None])
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.head_dim)  # (B, H, N, M)
        return torch.matmul(F.softmax(scores, dim=-1), v)


class PlainBlock(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, feed-forward net, residual."""

    def __init__(self, core: nn.Module, config: Config) -> None:
        super().__init__()
        size = config.model
        inner = size.heads * size.head_dim
        self.heads, self.head_dim = size.heads, size.head_dim
        self.core = core
        self.norm_1, self.norm_2 = nn.LayerNorm(size.dim), nn.LayerNorm(size.dim)
        self.q, self.k, self.v = (nn.Linear(size.dim, inner, size.bias) for _ in range(3))
        self.out = nn.Linear(inner, size.dim, size.bias)
        self.dropout = nn.Dropout(size.dropout)
        self.ffn = nn.Sequential(
            nn.Linear(size.dim, size.ffn),
            nn.GELU(),
            nn.Dropout(size.dropout),
            nn.Linear(size.ffn, size.dim),
            nn.Dropout(size.dropout),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(self.attend(self.norm_1(x), mask)) + x
        return self.ffn(self.norm_2(x)) + x

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C); the core is kept out of half precision."""
        q, k, v = (self.split(linear(x)) for linear in (self.q, self.k, self.v))
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(q.dtype, torch.float32)
            mixed = self.core(q.to(dtype), k.to(dtype), v.to(dtype), mask)
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))

    def split(self, x: Tensor) -> Tensor:
        """(B, N, H D) -> (B, H, N, D)."""
        return x.reshape(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)


class PlainModel(nn.Module):
    """Token ids (B, N), mask (B, N) of 0 and 1 -> logits (B, classes), with the weights of `ours`, a Classifier."""

    def __init__(self, ours: nn.Module, config: Config) -> None:
        super().__init__()
        size, held = config.model, ours.state_dict()
        usual = (size.pooling, size.positions) == ("mean", "learned") and not any(config.attn.get(w) for w in WRAPS)
        if config.attn["name"] not in ATTENTIONS or not usual:
            raise ValueError(f"the plain loop has {', '.join(ATTENTIONS)} of protocol mlpen, not {config.attn}")
        vocab, classes = len(held["encoder.tokens.weight"]), len(held["head.2.weight"])
        self.tokens, self.positions = nn.Embedding(vocab, size.dim), nn.Embedding(size.seq_len, size.dim)
        self.dropout = nn.Dropout(size.dropout)
        shared = held.get("encoder.blocks.0.attend.attention.projection")
        projection = nn.Parameter(shared.clone()) if shared is not None else None
        cores = [core(config, held, layer, projection) for layer in range(size.layers)]
        self.blocks = nn.ModuleList(PlainBlock(each, config) for each in cores)
        self.norm = nn.LayerNorm(size.dim)
        self.head = nn.Sequential(nn.Linear(size.dim, size.ffn), nn.ReLU(), nn.Linear(size.ffn, classes))
        self.to(held["encoder.norm.weight"].dtype)
        self.load_state_dict({name: held[named(name)] for name in self.state_dict()})

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)[None].expand(tokens.shape)
        x = self.dropout(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * mask[:, :, None]
        return self.head(x.sum(dim=1) / mask.sum(dim=1)[:, None])


WRAPS = ("conv", "grid", "tile")
# Where a parameter's name differs from that of lra/model.py, by its parts.
NAMES = {
    "tokens": "encoder.tokens",
    "positions": "encoder.positions",
    "blocks": "encoder.blocks",
    "norm": "encoder.norm",
    "norm_1": "attend_norm",
    "norm_2": "think_norm",
    "core": "attend.attention",
    "q": "attend.project.q",
    "k": "attend.project.k",
    "v": "attend.project.v",
    "out": "attend.out",
    "ffn": "think",
}


def named(name: str) -> str:
    """What lra/model.py calls a parameter or buffer of PlainModel."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def core(config: Config, held: dict[str, Tensor], layer: int, projection: nn.Parameter | None) -> nn.Module:
    """The attention of a layer."""
    words, head_dim = config.attn, config.model.head_dim
    if words["name"] == "softmax":
        return SoftmaxCore(head_dim, words["dropout"])
    if words["name"] == "nystromformer":
        return NystromCore(head_dim, words["landmarks"], words["iterations"])
    if words["name"] == "performer":
        return PerformerCore(head_dim, held[f"encoder.blocks.{layer}.attend.attention.directions"].clone())
    assert projection is not None, "a Linformer has a projection"
    return LinformerCore(head_dim, projection)


class PlainLoop:
    """Model, data, optimizer and schedule, and the step over them.

    `part`: how many examples go through at once.
    """

    def __init__(
        self, ours: nn.Module, config: Config, split: Split, longest: int, device: torch.device, dtype: torch.dtype,
        part: int,
    ) -> None:  # fmt: skip
        options = config.train
        self.model = PlainModel(ours, config).to(device).train()
        self.items = Items(split, longest, config.model.seq_len)
        self.device, self.dtype, self.part = device, dtype, part
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.lr, betas=(0.9, options.beta2), eps=options.eps,
            weight_decay=options.weight_decay,
        )  # fmt: skip
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, options.lr, total_steps=options.steps, pct_start=options.warmup / options.steps,
            anneal_strategy="linear", cycle_momentum=options.cycle_momentum,
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def batches(self, order: Sequence[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        """The batches of the examples that `order` names."""
        return iter(DataLoader(self.items, batch_sampler=[batch.tolist() for batch in order], num_workers=0))

    def step(self, batch: dict[str, Tensor]) -> float:
        """Learn from a batch; its mean loss."""
        total = 0.0
        size = len(batch["label"])
        self.optimizer.zero_grad()
        for part in zip(*(batch[key].split(self.part) for key in ("tokens", "mask", "label")), strict=True):
            tokens, mask, label = (each.to(self.device) for each in part)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits = self.model(tokens, mask)
            loss = F.cross_entropy(logits.float(), label) * (len(label) / size)
            self.scaler.scale(loss).backward()
            total += loss.item()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return total
