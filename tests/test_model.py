"""The Transformer around the core."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from attention_zoo import ZOO
from lra.config import Model
from lra.model import Classifier, parameter_count, transformer


def small(name: str = "softmax", pairs: bool = False, **choices: Any) -> Classifier:
    torch.manual_seed(0)
    size = Model(layers=2, dim=16, ffn=32, seq_len=64, dropout=0.0, **choices)
    places = 64 + (size.pooling == "cls")
    return transformer(lambda: ZOO[name](2, 8, places), size, vocab=16, classes=10, pairs=pairs)


@pytest.mark.parametrize("pooling", ["mean", "cls", "first"])
@pytest.mark.parametrize("name", ZOO)
def test_padding_never_changes_the_logits(name: str, pooling: str) -> None:
    model = small(name, pooling=pooling).eval()
    tokens = torch.randint(1, 16, (3, 40))
    lengths = torch.tensor([40, 17, 1])
    mask = torch.arange(40) < lengths[:, None]
    padded = torch.cat([tokens, torch.full((3, 24), 7)], 1)
    more = torch.cat([mask, torch.zeros(3, 24, dtype=torch.bool)], 1)
    assert_close(model(padded, more), model(tokens, mask))
    alone = torch.cat([model(tokens[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())])
    assert_close(model(tokens, mask), alone)


def test_the_mean_is_over_real_tokens_alone() -> None:
    model = small().eval()
    model.head = torch.nn.Sequential()
    tokens = torch.randint(1, 16, (1, 10))
    mask = torch.arange(10)[None] < 4
    encoded = model.encoder(tokens, mask)
    assert_close(model(tokens, mask), encoded[:, :4].mean(1))
    assert_close(encoded[:, 4:], torch.zeros(1, 6, 16))


@pytest.mark.parametrize("pooling", ["mean", "cls", "first"])
@pytest.mark.parametrize("name", ZOO)
def test_an_empty_document_is_finite_in_values_and_gradients(name: str, pooling: str) -> None:
    model = small(name, pooling=pooling)
    tokens, mask = torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.bool)
    mask[1] = True
    logits = model(tokens, mask)
    assert bool(logits.isfinite().all())
    logits.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_a_cls_reads_all_tokens_and_a_first_token_is_read_alone() -> None:
    tokens = torch.randint(1, 16, (1, 10))
    other = tokens.clone()
    other[0, 7] = (tokens[0, 7] + 1) % 15 + 1
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for pooling in ("cls", "first"):
        model = small(pooling=pooling).eval()
        model.head = torch.nn.Sequential()
        encoded = model.encoder(tokens, mask)
        assert encoded.shape == (1, 11 if pooling == "cls" else 10, 16)
        assert_close(model(tokens, mask), encoded[:, 0])
        assert not torch.equal(model(tokens, mask), model(other, mask))


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_longest_document_fits_and_the_order_of_its_tokens_counts(positions: str, pooling: str) -> None:
    model = small(positions=positions, pooling=pooling).eval()
    tokens = torch.randint(1, 16, (2, 64))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    assert not torch.equal(model(tokens, mask), model(tokens.flip(1), mask))


def test_sinusoids_are_the_published_ones_and_no_parameters() -> None:
    model = small(positions="sinusoidal")
    place, channel = np.arange(64)[:, None], np.arange(16)
    angle = place / 10_000 ** (channel // 2 * 2 / 16)
    expected = np.where(channel % 2, np.cos(angle), np.sin(angle))
    assert_close(model.encoder.positions.weight.double(), torch.from_numpy(expected), rtol=0, atol=2e-5)
    assert parameter_count(small()) - parameter_count(model) == 64 * 16
    assert not [name for name in model.state_dict() if "positions" in name]


# Pairs


@pytest.mark.parametrize("pooling", ["mean", "cls", "first"])
@pytest.mark.parametrize("pairing", ["products", "plain"])
def test_a_pair_is_two_documents_encoded_alone_by_one_encoder(pairing: str, pooling: str) -> None:
    model = small(pairs=True, pairing=pairing, pooling=pooling).eval()
    tokens = torch.randint(1, 16, (3, 2, 40))
    mask = torch.arange(40) < torch.tensor([[40, 3], [17, 40], [1, 1]])[..., None]
    a, b = (model.pooled(tokens[:, i], mask[:, i]) for i in range(2))
    features = torch.cat([a, b, a * b, a - b] if pairing == "products" else [a, b], 1)
    assert_close(model(tokens, mask), model.head(features))
    hidden = [layer.out_features for layer in model.head if isinstance(layer, torch.nn.Linear)]
    assert hidden == ([32, 10] if pairing == "products" else [32, 16, 10])


def test_the_order_of_a_pair_counts() -> None:
    model = small(pairs=True).eval()
    tokens = torch.randint(1, 16, (3, 2, 40))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    assert not torch.equal(model(tokens, mask), model(tokens.flip(1), mask))


# Initial weights


def test_xavier_draws_the_maps_around_a_core_and_leaves_the_core_alone() -> None:
    plain, drawn = small("linformer"), small("linformer", init="xavier")
    assert_close(drawn.encoder.tokens.weight.std(), torch.tensor(1.0), rtol=0, atol=0.2)
    weights = dict(plain.named_parameters())
    for layer in drawn.modules():
        if isinstance(layer, torch.nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert bound / 2 < float(layer.weight.detach().abs().max()) <= bound
            assert not bool(layer.bias.any())
    core = {name: weight for name, weight in drawn.named_parameters() if ".attention." in name}
    assert core
    for name, weight in core.items():
        assert_close(weight, weights[name], rtol=0, atol=0)


def test_without_bias_the_projections_around_the_attention_have_none_and_the_rest_has() -> None:
    names = [name for name, _ in small(bias=False).named_parameters() if name.endswith("bias")]
    assert not [name for name in names if ".attend." in name]
    assert len(names) == len([name for name, _ in small().named_parameters() if name.endswith("bias")]) - 2 * 4
