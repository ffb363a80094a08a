"""How the operators compute: exponentials in base 2, and in the precision that they were given."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

# The operators work with exp2 and base-2 logits: torch's exp on a CPU is up to 200 times slower where it underflows.
LN2 = math.log(2.0)

Result = TypeVar("Result")


def without_autocast(function: Callable[..., Result]) -> Callable[..., Result]:
    """Autocast would reach into a reference and turn its float32 products into products of half precision."""

    @wraps(function)
    def call(first: Tensor, *rest: Any) -> Result:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest)

    return call
