"""Hundreds of cells are composed by a short cut; these laws hold it to what `lra.train` does with the same words."""

from __future__ import annotations

import hydra
import pytest

from lra.compose import CONF, compose, composer, planned, softmax_words, store_schema
from lra.config import digest
from lra.tasks import TASKS

FILES = {group: sorted(file.stem for file in (CONF / group).glob("*.yaml")) for group in ("attn", "tune", "variant")}
# Every choice that has a file of its own, then what words can do to a composition.
TUNED = [dict(zip(("protocol", "task", "attn"), name.split("_", 2), strict=True)) for name in FILES["tune"]]
CASES = [
    ["protocol=google", "task=image", "attn=reformer", "seed=3"],
    ["task=text", "task.split=legacy", "attn=softmax", "seed=1", "train.lr=3e-4"],
    ["task=pathx", "attn=mra2", "model.pooling=first"],
    ["attn=linformer", "attn.rank=16", "train.warmup=100", "train.steps=${train.batch_size}00", "seed=2"],
    ["attn=mra2", "data_dir=elsewhere/${seed}", "seed=7"],
    ["recipe=google_text", "task=listops", "attn=yoso_conv", "seed=0"],
    ["tune=mlpen_text_mra2", "attn=mra2", "variant=google_softmax", "seed=5"],
    ["attn=mra", "attn.scales=[16,4,1]", "~attn.rule", "device=cpu", "run_dir=runs/here"],
    ["seed=4294967295"],
]


def slow(words: list[str]) -> tuple[str, str]:
    """Directory and identity of a run, as Hydra composes the words of a command line."""
    config = hydra.compose("config", overrides=words, return_hydra_config=True)
    choices = {group: str(config.hydra.runtime.choices[group]) for group in ("task", "attn", "protocol")}
    plain = planned(hydra.compose("config", overrides=words), choices, compose(choices))
    return str(plain.path), digest(plain.plain)


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_a_cell_is_the_run_that_the_same_words_are(words: list[str]) -> None:
    with composer() as composing:
        # Other cells came before.
        composing.planned([*(word for word in words if not word.startswith("seed=")), "seed=11"])
        cell = composing.planned(words)
    store_schema()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert (str(cell.path), digest(cell.plain)) == slow(words)
    assert cell.config.seed == cell.plain["seed"]


def test_every_choice_with_a_file_of_its_own_is_composed_as_by_hydra_alone() -> None:
    choices = [[f"{group}={name}" for group, name in one.items()] for one in TUNED[::7]]
    choices += [[f"attn={attn}", f"task={sorted(TASKS)[i % len(TASKS)]}"] for i, attn in enumerate(FILES["attn"][::4])]
    with composer() as composing:
        cells = [composing.planned(words) for words in choices]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert [(str(cell.path), digest(cell.plain)) for cell in cells] == [slow(words) for words in choices]


def test_one_cell_leaves_no_trace_in_the_next() -> None:
    with composer() as composing:
        before = composing.planned(["attn=mra2", "seed=1"])
        composing.planned(["attn=mra2", "attn.block_size=8", "train.lr=1", "+attn.grid=[1,2]", "seed=1"])
        assert composing.planned(["attn=mra2", "seed=1"]) == before


def test_the_rival_of_a_run_has_its_words_but_those_of_the_attention() -> None:
    words = ["task=text", "attn=mra2", "attn.block_size=8", "+attn.x=1", "variant=a", "tune=b", "train.lr=1", "~seed"]
    assert softmax_words(words) == ["task=text", "train.lr=1", "~seed", "attn=softmax"]
