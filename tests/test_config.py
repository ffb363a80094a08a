"""The configuration: rules of values, identity of a run, its path."""

from pathlib import Path
from typing import Any

import pytest

from lra.config import CIRCUMSTANCES, Config, Model, Train, deviations, digest, flat, identity, run_path
from lra.words import WordError


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 0}, "train.steps=0 must be at least 1"),
        ({"lr": float("nan")}, "train.lr=nan must be above 0 and finite"),
        ({"warmup": 5000}, "train.warmup=5000 must be at least 2 and below train.steps=5000"),
        ({"padding": "bukcet"}, "train.padding=bukcet is not one of bucket, fixed; did you mean 'bucket'?"),
        ({"micro_batch": 33}, "train.micro_batch=33 must be auto or 1 to train.batch_size=32"),
        ({"micro_batch": True}, "train.micro_batch=True must be auto or 1 to train.batch_size=32"),
        ({"clip": -1.0}, "train.clip=-1.0 must be at least 0 and finite"),
        ({"schedule": "rsqr"}, "train.schedule=rsqr is not one of onecycle, rsqrt, cosine; did you mean 'rsqrt'?"),
        ({"schedule": "rsqrt", "warmup": 0}, "train.warmup=0 must be at least 1"),
        (
            {"schedule": "cosine", "cycle_momentum": True},
            "train.cycle_momentum=true must be false with train.schedule=cosine",
        ),
        ({"select": "lst"}, "train.select=lst is not one of best, last; did you mean 'last'?"),
        ({"beta2": 1.0}, "train.beta2=1.0 must be at least 0 and below 1"),
    ],
)
def test_a_value_against_its_rule_names_both(options: dict[str, Any], line: str) -> None:
    with pytest.raises(WordError) as caught:
        Train(**options)
    assert str(caught.value) == line


def test_sizes_and_root_values_have_rules_too() -> None:
    with pytest.raises(WordError, match=r"^model.heads=0 must be at least 1$"):
        Model(heads=0)
    with pytest.raises(WordError, match=r"^model.dropout=1.0 must be"):
        Model(dropout=1.0)
    with pytest.raises(WordError, match=r"^seed=-1 must be from 0"):
        Config(seed=-1)
    with pytest.raises(WordError, match=r"^kernel=gpu is not one of auto, reference, cpu, cuda"):
        Config(kernel="gpu")


@pytest.mark.parametrize(
    ("model", "attn", "task", "line"),
    [
        ({"pooling": "men"}, {}, {}, "model.pooling=men is not one of mean, cls, first; did you mean 'mean'?"),
        ({"positions": "none"}, {}, {}, "model.positions=none is not one of learned, sinusoidal"),
        ({"init": "xaver"}, {}, {}, "model.init=xaver is not one of torch, xavier; did you mean 'xavier'?"),
        ({"pairing": "plane"}, {}, {}, "model.pairing=plane is not one of products, plain; did you mean 'plain'?"),
        ({"positions": "sinusoidal", "dim": 5}, {}, {}, "model.dim=5 must be even with model.positions=sinusoidal"),
        ({"pooling": "cls"}, {"grid": [4, 4]}, {}, "model.pooling=cls must be mean or first with attn.grid=[4, 4]"),
        ({}, {}, {"mask_zero_pixels": "yes"}, "task.mask_zero_pixels=yes must be true or false"),
        (
            {"pooling": "first"},
            {},
            {"mask_zero_pixels": True},
            "model.pooling=first must be mean or cls with task.mask_zero_pixels=true",
        ),
    ],
)
def test_choices_that_contradict_each_other_are_one_line(
    model: dict[str, Any], attn: dict[str, Any], task: dict[str, Any], line: str
) -> None:
    with pytest.raises(WordError) as caught:
        Config(model=Model(**model), attn=attn, task=task)
    assert str(caught.value).startswith(line)


def test_a_warm_up_may_be_longer_than_the_run_where_the_schedule_has_no_end() -> None:
    assert Train(schedule="rsqrt", warmup=8000, steps=5000).warmup == 8000


def test_an_unknown_option_fails_by_name() -> None:
    with pytest.raises(TypeError, match="lrr"):
        Train(**{"lrr": 1.0})  # type: ignore[arg-type]


PLAIN = {"seed": 0, "device": "auto", "attn": {"name": "mra2"}, "train": {"lr": 1e-4, "log_every": 10}}


def changed(**leaves: Any) -> dict[str, Any]:
    return {**PLAIN, **leaves}


def test_circumstances_are_no_part_of_the_identity() -> None:
    elsewhere = changed(device="cuda", train={"lr": 1e-4, "log_every": 1})
    assert identity(elsewhere) == identity(PLAIN)
    assert digest(elsewhere) == digest(PLAIN)
    assert not CIRCUMSTANCES & flat({"seed": 0, "task": {"source": "x"}}).keys()


def test_whatever_changes_the_result_changes_the_identity() -> None:
    others = [changed(seed=1), changed(attn={"name": "softmax"}), changed(train={"lr": 3e-4, "log_every": 10})]
    assert len({digest(config) for config in [PLAIN, *others]}) == 4


def test_every_circumstance_is_a_key_of_the_configuration() -> None:
    keys = {*Config.__dataclass_fields__, *(f"train.{key}" for key in Train.__dataclass_fields__)}
    assert keys >= CIRCUMSTANCES


def test_the_path_of_a_run_is_its_recipe_and_what_deviates_from_it() -> None:
    assert deviations(PLAIN, PLAIN) == {}
    lr = deviations(changed(seed=3, device="cpu", train={"lr": 3e-4}), PLAIN)
    assert lr == {"train.lr": 3e-4}
    assert run_path(Path("runs"), "mlpen", "listops", "mra2", 0, {}) == Path("runs/mlpen/listops/mra2/seed0")
    assert run_path(Path("runs"), "mlpen", "listops", "mra2", 3, lr).name == "train.lr=0.0003,seed3"


def test_long_and_odd_values_make_a_safe_short_name_that_stays_unique() -> None:
    odd = run_path(Path("runs"), "p", "t", "a", 0, {"attn.x": "../ü b"}).name
    assert "/" not in odd
    assert " " not in odd
    long = [run_path(Path("runs"), "p", "t", "a", 0, {"attn.x": "y" * 300 + end}).name for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name) < 250 and name.endswith(",seed0") for name in long)
