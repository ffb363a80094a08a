"""What `study=efficiency` measures: an attention by itself, and as part of the model that the benchmark trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from attention_zoo.base import Attention
from benchmarks.studies.baselines import EXACT, Flex
from lra.attention import attention
from lra.config import Model, Train
from lra.model import transformer

CONF = Path(__file__).resolve().parents[2] / "conf"
PROTOCOL = CONF / "protocol" / "mlpen.yaml"
# Documents of bytes, of two classes.
VOCABULARY, CLASSES = 256, 2


def read(file: Path) -> dict[str, Any]:
    """What a file of conf/ says."""
    words = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(words, dict), "it is a mapping"
    return {str(key): value for key, value in words.items()}


def protocol(seq_len: int) -> tuple[Model, Train]:
    """The sizes and the options of training of the protocol mlpen, for documents of `seq_len` tokens."""
    words = read(PROTOCOL)
    return Model(**words["model"], seq_len=seq_len), Train(**words["train"])


def core(name: str, size: Model) -> Attention:
    """An exact attention by its name, or a variant with the parameters that conf/attn/ has for it."""
    if name in EXACT:
        return EXACT[name](size.heads, size.head_dim, size.seq_len)
    return attention(read(CONF / "attn" / f"{name}.yaml"), size.heads, size.head_dim, size.seq_len)()


@lru_cache(maxsize=1)
def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """q, k, v and the gradient of the output, which all attentions of a size share."""
    torch.manual_seed(0)
    q, k, v, upstream = (torch.randn(shape, device=device, dtype=dtype) for _ in range(4))
    return [*(x.requires_grad_() for x in (q, k, v)), upstream]


class Core:
    """An attention on q, k, v (B, H, N, D) of `dtype`, without padding; a step ends with all gradients."""

    def __init__(self, name: str, n: int, batch: int, dtype: str, device: torch.device) -> None:
        size, _ = protocol(n)
        shape = batch, size.heads, n, size.head_dim
        *self.qkv, self.upstream = inputs(shape, getattr(torch, dtype), device)
        torch.manual_seed(0)
        self.core = core(name, size).to(device)
        self.wanted = [*self.qkv, *self.core.parameters()]
        self.compiled = isinstance(self.core, Flex)
        self.parts: dict[str, Callable[[], Any]] = {"forward": self.forward, "step": self.step}

    def forward(self) -> Tensor:
        turned(self.core, training=False)
        with torch.no_grad():
            return self.core(*self.qkv)

    def step(self) -> Any:
        turned(self.core, training=True)
        # Some look at q alone in the place of keys.
        return torch.autograd.grad(self.core(*self.qkv), self.wanted, self.upstream, allow_unused=True)

    def facts(self) -> dict[str, Any]:
        return facts(self.core, self.upstream.device)


class Whole:
    """The model of protocol mlpen on documents of full length, which are on the device already.

    It gets the mask that training gives it, here of real tokens alone. Weights are float32; with bfloat16 the forward
    pass is under autocast, as the trainer has it.
    """

    def __init__(self, name: str, n: int, batch: int, dtype: str, device: torch.device) -> None:
        size, options = protocol(n)
        torch.manual_seed(0)
        self.model = transformer(partial(core, name, size), size, VOCABULARY, CLASSES).to(device)
        self.tokens = torch.randint(VOCABULARY, (batch, n), device=device)
        self.mask = torch.ones(batch, n, dtype=torch.bool, device=device)
        self.labels = torch.randint(CLASSES, (batch,), device=device)
        self.dtype, self.clip = getattr(torch, dtype), options.clip
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.lr, weight_decay=options.weight_decay, eps=options.eps, fused=True
        )
        self.core: Attention = self.model.encoder.blocks[0].attend.attention  # type: ignore[union-attr, assignment]
        self.compiled = isinstance(self.core, Flex)
        self.parts: dict[str, Callable[[], Any]] = {
            "forward": self.forward, "step": self.step, "train": self.train,
        }  # fmt: skip

    def autocast(self) -> AbstractContextManager[Any]:
        low = self.dtype != torch.float32
        return torch.autocast(self.tokens.device.type, self.dtype) if low else nullcontext()

    def forward(self) -> Tensor:
        turned(self.model, training=False)
        with torch.no_grad(), self.autocast():
            return self.model(self.tokens, self.mask)

    def step(self) -> None:
        self.differentiate()
        self.optimizer.zero_grad()

    def train(self) -> None:
        self.differentiate()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def differentiate(self) -> None:
        turned(self.model, training=True)
        with self.autocast():
            logits = self.model(self.tokens, self.mask).float()
        (F.cross_entropy(logits, self.labels, reduction="sum") / len(self.labels)).backward()

    def facts(self) -> dict[str, Any]:
        return facts(self.core, self.tokens.device)


def turned(module: nn.Module, training: bool) -> None:
    """Set training or evaluation, which takes long enough in a model to be done only where it changes something."""
    if module.training != training:
        module.train(training)


def facts(core: Attention, device: torch.device) -> dict[str, Any]:
    """The kernel of the attention's own operator; of a compiled one also what reached it."""
    found = {"kernel": core.kernel(device) or ""}
    return found | ({"reached": core.reached, "operators": "flex_attention"} if isinstance(core, Flex) else {})


# What is measured by the value of `of`, and the part that its memory and its ratios are of.
KINDS: dict[str, Callable[..., Core | Whole]] = {"core": Core, "model": Whole}
