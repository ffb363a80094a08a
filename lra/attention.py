"""From the words under `attn` to attention cores: the variant, its own parameters, and what is wrapped around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from attention_zoo import ZOO, Attention, Convolved, Tiled
from lra.config import LARGEST
from lra.words import WordError, nearest

# Words that every variant takes, with the values that leave it as it is.
WRAPS: dict[str, Any] = {"conv": 0, "grid": None, "tile": None}


def own_parameters(name: str) -> list[str]:
    """The keywords of a variant's class."""
    parameters = inspect.signature(ZOO[name]).parameters.items()
    return [key for key, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def attention(words: Mapping[str, Any], heads: int, head_dim: int, seq_len: int) -> Callable[[], Attention]:
    """What builds a fresh core for each layer. WordError where a word is unknown; a wrong value is a ValueError or a
    TypeError of the variant when a core is built."""
    name = words.get("name")
    if name not in ZOO:
        raise WordError(f"attn.name={name} is not one of {', '.join(ZOO)}{nearest(str(name), ZOO)}")
    own = {key: value for key, value in words.items() if key != "name" and key not in WRAPS}
    takes = own_parameters(name)
    for key in own:
        if key not in takes:
            raise WordError(f"attn.{key}: {name} takes {', '.join([*takes, *WRAPS])}{nearest(key, [*takes, *WRAPS])}")
    for key, value in words.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not abs(number) <= LARGEST:
                raise WordError(f"attn.{key}={value} must be at most {LARGEST}")
    conv, grid, tile = ({**WRAPS, **words}[key] for key in WRAPS)
    if (grid is None) != (tile is None):
        raise WordError(f"attn.grid={grid} and attn.tile={tile} come together, such as [32,32] and [4,8]")

    def build() -> Attention:
        core = ZOO[name](heads, head_dim, seq_len, **own)
        if grid is not None:
            core = Tiled(core, grid, tile)
        return Convolved(core, conv) if conv else core

    return build


def spelled(words: Mapping[str, Any]) -> str:
    """`name(key=value, ...)`, without the wraps that do nothing."""
    said = (f"{key}={value}" for key, value in words.items() if key != "name" and WRAPS.get(key, ...) != value)
    return f"{words['name']}({', '.join(said)})"
