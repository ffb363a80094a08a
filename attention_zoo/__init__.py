"""Attention cores behind one contract: `ZOO[name](heads, head_dim, seq_len)(q, k, v, mask)`."""

from __future__ import annotations

from .base import Attention
from .bigbird import BigBird
from .convolved import Convolved
from .linformer import Linformer
from .longformer import Longformer
from .mra import MRA
from .mra2 import MRA2
from .mra2_s import MRA2S
from .nystromformer import Nystromformer
from .performer import Performer
from .reformer import Reformer
from .scatterbrain import Scatterbrain
from .soft import Soft
from .softmax import Softmax
from .tiled import Tiled
from .yoso import YOSO

ZOO: dict[str, type[Attention]] = {
    "softmax": Softmax,
    "mra2": MRA2,
    "mra2_s": MRA2S,
    "mra": MRA,
    "performer": Performer,
    "scatterbrain": Scatterbrain,
    "linformer": Linformer,
    "nystromformer": Nystromformer,
    "soft": Soft,
    "longformer": Longformer,
    "bigbird": BigBird,
    "reformer": Reformer,
    "yoso": YOSO,
}

__all__ = ["ZOO", "Attention", "Convolved", "Tiled"]
