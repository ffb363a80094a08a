"""The words under `attn`: a variant, its parameters, and what may be wrapped around any of them."""

from __future__ import annotations

from typing import Any

import pytest

from attention_zoo import ZOO, Convolved, Tiled
from attention_zoo.mra2 import MRA2
from lra.attention import attention, own_parameters, spelled
from lra.words import WordError


def test_a_plain_variant_is_wrapped_in_nothing() -> None:
    core = attention({"name": "mra2", "block_size": 16, "conv": 0, "grid": None, "tile": None}, 2, 8, 64)()
    assert isinstance(core, MRA2)
    assert core.block_size == 16


@pytest.mark.parametrize("name", ZOO)
def test_every_variant_can_be_convolved_and_tiled(name: str) -> None:
    core = attention({"name": name, "conv": 5, "grid": [8, 8], "tile": [2, 4]}, 2, 8, 64)()
    assert isinstance(core, Convolved)
    assert isinstance(core.core, Tiled)
    assert isinstance(core.core.core, ZOO[name])
    assert core.reads == core.core.core.reads
    assert core.filters.shape == (2, 5)


def test_each_layer_gets_a_core_of_its_own() -> None:
    build = attention({"name": "softmax", "conv": 3}, 2, 8, 64)
    assert build() is not build()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ({"name": "softmaxx"}, "attn.name=softmaxx is not one of softmax, .*did you mean 'softmax'"),
        ({}, "attn.name=None is not one of"),
        ({"name": "mra2", "block": 3}, "attn.block: mra2 takes block_size, .*did you mean 'block_size'"),
        ({"name": "softmax", "cnv": 3}, "attn.cnv: softmax takes dropout, conv, grid, tile; did you mean 'conv'"),
        ({"name": "softmax", "grid": [8, 8]}, "attn.grid=.*8, 8.* and attn.tile=None come together"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(words: dict[str, Any], answer: str) -> None:
    with pytest.raises(WordError, match=rf"\A{answer}[^\n]*\Z"):
        attention(words, 2, 8, 64)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ({"conv": 4}, "taps=4 must be odd"),
        ({"conv": -1}, "taps=-1 must be an integer of at least 1"),
        ({"grid": [8, 9], "tile": [2, 3]}, "grid=8x9 must have as many pixels as seq_len=64"),
        ({"grid": [8, 8], "tile": [3, 8]}, "tile=3x8 must divide grid=8x8"),
        ({"grid": [64], "tile": [1, 1]}, "grid=.64. must be two integers, rows and columns"),
        ({"grid": [8, 8], "tile": [0, 1]}, "tile=0 must be an integer of at least 1"),
    ],
)
def test_a_wrong_value_is_answered_when_a_core_is_built(words: dict[str, Any], answer: str) -> None:
    with pytest.raises(ValueError, match=rf"\A{answer}\Z"):
        attention({"name": "softmax", **words}, 2, 8, 64)()


def test_what_does_nothing_is_not_spelled_out() -> None:
    assert spelled({"name": "softmax", "dropout": 0.0, "conv": 0, "grid": None, "tile": None}) == "softmax(dropout=0.0)"
    assert spelled({"name": "softmax", "dropout": 0.0, "conv": 5}) == "softmax(dropout=0.0, conv=5)"
    assert own_parameters("softmax") == ["dropout"]
