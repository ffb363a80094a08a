"""What a run can be told: the typed root of the configuration and the rule of every value."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lra.words import WordError, choose

KERNELS = ("auto", "reference", "cpu", "cuda")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
PADDINGS = ("bucket", "fixed")
POOLINGS = ("mean", "cls", "first")
POSITIONS = ("learned", "sinusoidal")
INITS = ("torch", "xavier")
PAIRINGS = ("products", "plain")
SCHEDULES = ("onecycle", "rsqrt", "cosine")
SELECTS = ("best", "last")

# The largest size of anything in a model, and the most layers: beyond what any machine holds, a slip of the keyboard.
LARGEST, LAYERS = 2**20, 1024
# Beyond it a count is no longer exact where it is divided.
MOST = 2**53

# Keys that say where and how fast a run happens, never what it computes: they may change between two starts of a run.
CIRCUMSTANCES = frozenset(
    {"data_dir", "run_dir", "tracker", "tracker_dir", "device", "kernel", "fresh"}
    | {f"train.{key}" for key in ("log_every", "checkpoint_every", "compile", "micro_batch")}
)


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """Raise WordError naming key, value and rule unless the rule holds."""
    if not holds:
        raise WordError(f"{key}={value} must be {rule}")


@dataclass(frozen=True)
class Model:
    """The Transformer around the attention core; seq_len is the number of positions for tokens, a CLS has its own."""

    layers: int = 2
    dim: int = 64
    heads: int = 2
    head_dim: int = 32
    ffn: int = 128
    dropout: float = 0.1
    seq_len: int = 2048
    pooling: str = "mean"
    positions: str = "learned"
    bias: bool = True
    init: str = "torch"
    pairing: str = "products"

    def __post_init__(self) -> None:
        for key in ("layers", "dim", "heads", "head_dim", "ffn", "seq_len"):
            require(getattr(self, key) > 0, f"model.{key}", getattr(self, key), "at least 1")
            most = LAYERS if key == "layers" else LARGEST
            require(getattr(self, key) <= most, f"model.{key}", getattr(self, key), f"at most {most}")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "at least 0 and below 1")
        choose("model.pooling", self.pooling, POOLINGS)
        choose("model.positions", self.positions, POSITIONS)
        choose("model.init", self.init, INITS)
        choose("model.pairing", self.pairing, PAIRINGS)
        even = self.positions != "sinusoidal" or self.dim % 2 == 0
        require(even, "model.dim", self.dim, "even with model.positions=sinusoidal")


@dataclass(frozen=True)
class Train:
    """Options of the loop. Steps are optimizer updates, `micro_batch` counts examples, `clip` is a norm (0: off)."""

    steps: int = 5000
    batch_size: int = 32
    lr: float = 1e-4
    warmup: int = 1000
    schedule: str = "onecycle"
    weight_decay: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-6
    clip: float = 0.0
    cycle_momentum: bool = False
    select: str = "best"
    padding: str = "bucket"
    eval_every: int = 50
    log_every: int = 10
    checkpoint_every: int = 50
    dtype: str = "auto"
    compile: bool = False
    micro_batch: Any = "auto"

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "eval_every", "log_every", "checkpoint_every"):
            require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "at least 1")
        for key in ("steps", "batch_size", "warmup", "eval_every", "log_every", "checkpoint_every"):
            require(getattr(self, key) <= MOST, f"train.{key}", getattr(self, key), "at most 2**53")
        require(0 < self.lr < float("inf"), "train.lr", self.lr, "above 0 and finite")
        choose("train.schedule", self.schedule, SCHEDULES)
        choose("train.select", self.select, SELECTS)
        if self.schedule == "onecycle":
            rule = f"at least 2 and below train.steps={self.steps}"
            require(1 < self.warmup < self.steps, "train.warmup", self.warmup, rule)
        else:
            require(self.warmup > 0, "train.warmup", self.warmup, "at least 1")
            rule = f"false with train.schedule={self.schedule}"
            require(not self.cycle_momentum, "train.cycle_momentum", "true", rule)
        require(0 <= self.beta2 < 1, "train.beta2", self.beta2, "at least 0 and below 1")
        for key in ("weight_decay", "clip"):
            require(0 <= getattr(self, key) < float("inf"), f"train.{key}", getattr(self, key), "at least 0 and finite")
        require(0 < self.eps < 1, "train.eps", self.eps, "above 0 and below 1")
        choose("train.padding", self.padding, PADDINGS)
        choose("train.dtype", self.dtype, DTYPES)
        micro = self.micro_batch
        count = isinstance(micro, int) and not isinstance(micro, bool) and 0 < micro <= self.batch_size
        require(
            micro == "auto" or count, "train.micro_batch", micro, f"auto or 1 to train.batch_size={self.batch_size}"
        )


@dataclass(frozen=True)
class Config:
    """The root. `task` and `attn` are the groups' YAML as it stands; the attention class checks its own parameters."""

    task: dict[str, Any] = field(default_factory=dict)
    attn: dict[str, Any] = field(default_factory=lambda: {"conv": 0, "grid": None, "tile": None})
    protocol: str = "mlpen"
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    seed: int = 0
    data_dir: str = "runs/.data"
    run_dir: str | None = None
    tracker: str = "offline"
    tracker_dir: str = "runs"
    device: str = "auto"
    kernel: str = "auto"
    fresh: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2**32 - 1")
        for key in ("data_dir", "tracker_dir"):
            require(bool(getattr(self, key)), key, getattr(self, key), "the name of a folder")
        choose("device", self.device, DEVICES)
        choose("kernel", self.kernel, KERNELS)
        pooling, grid = self.model.pooling, self.attn.get("grid")
        require(pooling != "cls" or grid is None, "model.pooling", pooling, f"mean or first with attn.grid={grid}")
        masked = self.task.get("mask_zero_pixels", False)
        require(isinstance(masked, bool), "task.mask_zero_pixels", masked, "true or false")
        rule = "mean or cls with task.mask_zero_pixels=true"
        require(not masked or pooling != "first", "model.pooling", pooling, rule)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys; lists stay values."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        leaves |= inner
    return leaves


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys and values that decide what a run computes."""
    return {key: value for key, value in flat(config).items() if key not in CIRCUMSTANCES}


def digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of the identity: equal for two runs that compute the same."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def deviations(config: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the words of a run change in its recipe, the seed left out."""
    mine, plain = identity(config), identity(recipe)
    return {
        key: mine.get(key)
        for key in sorted(mine.keys() | plain.keys())
        if key != "seed" and mine.get(key) != plain.get(key)
    }


def run_path(root: Path, protocol: str, task: str, attn: str, seed: int, changed: Mapping[str, Any]) -> Path:
    """`<root>/<protocol>/<task>/<attn>/[<key>=<value>,...]seed<k>`: the path is the identity of a run."""
    words = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in changed.items()]
    name = ",".join([*words, f"seed{seed}"])
    safe = re.sub(r"[^\w.=,+\[\]-]", "_", name)
    if len(safe) > 200:
        safe = f"{safe[:150]}...{hashlib.sha256(name.encode()).hexdigest()[:12]},seed{seed}"
    return root / protocol / task / attn / safe
