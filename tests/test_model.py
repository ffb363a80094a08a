"""The Transformer around the core."""

import pytest
import torch
from torch.testing import assert_close

from attention_zoo import ZOO
from lra.model import Classifier, parameter_count, transformer


def small(name: str = "softmax", seq_len: int = 64, dropout: float = 0.0) -> Classifier:
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 16, "ffn": 32, "vocab": 16, "classes": 10}
    return transformer(lambda: ZOO[name](2, 8, seq_len), seq_len=seq_len, dropout=dropout, **sizes)


def test_the_published_sizes_have_the_published_number_of_parameters() -> None:
    sizes = {"layers": 2, "dim": 64, "ffn": 128, "vocab": 32, "classes": 10, "seq_len": 2048}
    model = transformer(lambda: ZOO["softmax"](2, 32, 2048), dropout=0.1, **sizes)
    # The MRA paper's public LRA configuration of ListOps.
    assert parameter_count(model) == 209_802


@pytest.mark.parametrize("name", ZOO)
def test_padding_never_changes_the_logits(name: str) -> None:
    model = small(name).eval()
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


def test_an_empty_document_is_finite_in_values_and_gradients() -> None:
    model = small()
    tokens, mask = torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.bool)
    mask[1] = True
    model(tokens, mask).sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(bool(grad.isfinite().all()) for grad in grads)
