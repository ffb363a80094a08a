"""Attention cores behind one contract: `ZOO[name](heads, head_dim, seq_len)(q, k, v, mask)`."""

from __future__ import annotations

from .adamra import AdaMRA
from .base import Attention
from .bigbird import BigBird
from .convolved import Convolved
from .h_transformer_1d import HTransformer1D
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
    "linformer": Linformer,
    "soft": Soft,
    "nystromformer": Nystromformer,
    "yoso": YOSO,
    "reformer": Reformer,
    "longformer": Longformer,
    "bigbird": BigBird,
    "h_transformer_1d": HTransformer1D,
    "scatterbrain": Scatterbrain,
    "adamra": AdaMRA,
}

__all__ = ["ZOO", "Attention", "Convolved", "Tiled"]
