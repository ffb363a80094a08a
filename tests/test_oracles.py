"""Every variant of the zoo is what its paper says: values and gradients equal those of its dense oracle."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from attention_zoo import ZOO

from .oracles import oracle
from .test_laws import BATCH, build, inputs, ragged, run


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 17, 63, 100])
@pytest.mark.parametrize("name", ZOO)
def test_values_and_gradients_are_those_of_the_dense_oracle(name: str, length: int, masked: bool) -> None:
    core = build(name).double()
    dense = getattr(oracle(name), "dense", None)
    assert dense is not None, f"tests/oracles/{name}.py has no dense(core, q, k, v, mask)"
    qkv = inputs(length, torch.float64)
    mask = ragged(length) if masked else torch.ones(BATCH, length, dtype=torch.bool)
    expected = run(lambda q, k, v, mask: dense(core, q, k, v, mask), qkv, mask)
    assert_close(run(core, qkv, mask if masked else None).at(mask), expected.at(mask))
