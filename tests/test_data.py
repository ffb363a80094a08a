"""Loading checks what it maps; batches are a function of (seed, step); collating is what a plain loop would do."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lra.data import (
    DTYPES,
    SPLITS,
    DataMissing,
    Sampler,
    Split,
    collate,
    content_sha256,
    evaluation_batches,
    folder,
    identity_sha256,
    load,
)
from lra.tasks.base import Place, Reading, Task
from tests.runs import ROOT, environment


def make_split(lengths: list[int], seed: int = 0, pairs: list[tuple[int, int]] | None = None) -> Split:
    """Random tokens of 0..15, zeros included: a zero is not padding."""
    draw = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    tokens = draw.integers(0, 16, offsets[-1]).astype(np.uint8)
    labels = draw.integers(0, 10, len(lengths) if pairs is None else len(pairs)).astype(np.uint8)
    return Split(tokens, offsets, labels, None if pairs is None else np.array(pairs, dtype=np.int32))


class Toy(Task):
    """What a data set is looked up by."""

    name, version, sources, max_len = "toy", "1.0.0", ("made",), 9

    def require(self, source: str, manual: Path) -> None:
        raise AssertionError("arrays are loaded without their source")

    def read(self, source: str, place: Place) -> Reading:
        raise AssertionError("arrays are loaded without their source")


def store(path: Path, splits: Mapping[str, Split], **facts: object) -> Path:
    """Write splits and a manifest, with these facts in the place of Toy's, as a data set into `path`."""
    path.mkdir(parents=True)
    told = {}
    for name, split in splits.items():
        arrays = {key: array for key, array in split._asdict().items() if array is not None}
        for key, array in arrays.items():
            np.save(path / f"{name}.{key}.npy", array)
        hashes = {key: content_sha256(array) for key, array in arrays.items()}
        documents = len(split.offsets) - 1
        sizes = {"examples": len(split.labels), "documents": documents, "tokens": len(split.tokens)}
        told[name] = {**sizes, "sha256": hashes}
    manifest = {
        "schema": 1, "task": "toy", "source": "made", "options": {}, "version": "1.0.0", "max_len": 9, "classes": 10,
        "vocabulary": [str(i) for i in range(16)], "splits": told, "sha256": identity_sha256(told), **facts,
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def write(data_dir: Path, pairs: bool = False) -> Path:
    """A whole data set `toy` of three small splits."""
    both = [(0, 3), (1, 1), (2, 0)] if pairs else None
    splits = {name: make_split([5, 3, 9, 1], seed, both) for seed, name in enumerate(SPLITS)}
    return store(folder(data_dir, Toy(), "made"), splits)


@pytest.mark.parametrize("pairs", [False, True])
def test_what_was_written_is_loaded(tmp_path: Path, pairs: bool) -> None:
    path = write(tmp_path, pairs)
    data = load(tmp_path, Toy(), "made")
    assert data.manifest == json.loads((path / "manifest.json").read_text())
    for seed, split in enumerate((data.train, data.val, data.test)):
        expected = make_split([5, 3, 9, 1], seed, [(0, 3), (1, 1), (2, 0)] if pairs else None)
        for key, array in expected._asdict().items():
            np.testing.assert_array_equal(getattr(split, key), array)
        assert split.lengths.tolist() == ([5, 3, 9] if pairs else [5, 3, 9, 1])
        assert not split.tokens.flags.writeable


def test_missing_data_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"run make data task=toy task.source=made data_dir=") as caught:
        load(tmp_path, Toy(), "made")
    assert "\n" not in str(caught.value)


def edit_manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return edit


def replace(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path / name, array)


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(content)


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:size])


def save_archive(path: Path) -> None:
    with (path / "test.labels.npy").open("wb") as file:
        np.savez(file, labels=np.zeros(4))


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def small(count: int, value: int = 0) -> np.ndarray:
    return np.full(count, value, np.uint8)


MANIFEST, BROKEN = "manifest.json is not a manifest", "is not a whole .npy array"
# What load() finds, and the damage done.
DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    ("manifest.json is missing", lambda path: (path / "manifest.json").unlink()),
    (MANIFEST, overwrite("manifest.json", b"")),
    (MANIFEST, overwrite("manifest.json", b"\xff\xfe\x00")),
    (MANIFEST, overwrite("manifest.json", b"[1, 2]")),
    (MANIFEST, overwrite("manifest.json", b"null")),
    (MANIFEST, cut("manifest.json", 200)),
    (MANIFEST, edit_manifest(lambda manifest: manifest["splits"].pop("val"))),
    (MANIFEST, edit_manifest(lambda manifest: manifest.pop("sha256"))),
    (MANIFEST, edit_manifest(lambda manifest: manifest["splits"]["val"].update(tokens="18"))),
    (
        "manifest.json has schema 3, this version reads 1 to 2",
        edit_manifest(lambda manifest: manifest.update(schema=3)),
    ),
    ("manifest.json is damaged (sha256", edit_manifest(lambda manifest: manifest.update(schema=2))),
    ("manifest.json says {'task': 'text'", edit_manifest(lambda manifest: manifest.update(task="text"))),
    ("val.labels.npy is missing", lambda path: (path / "val.labels.npy").unlink()),
    (f"val.tokens.npy {BROKEN}", overwrite("val.tokens.npy", b"")),
    (f"val.tokens.npy {BROKEN}", overwrite("val.tokens.npy", b"PNG" * 99)),
    (f"val.tokens.npy {BROKEN}", cut("val.tokens.npy", 40)),
    (f"val.tokens.npy {BROKEN}", cut("val.tokens.npy", 130)),
    (f"test.labels.npy {BROKEN}", save_archive),
    (f"val.labels.npy {BROKEN}", replace("val.labels.npy", np.array([{}], dtype=object))),
    ("val.labels.npy holds uint8 (0,), expected uint8", replace("val.labels.npy", small(0))),
    ("train.tokens.npy holds int64 (18,), expected uint8", replace("train.tokens.npy", whole(*range(18)))),
    ("train.tokens.npy holds uint8 (18, 1)", replace("train.tokens.npy", small(18)[:, None])),
    ("train.tokens.npy has 17 tokens", replace("train.tokens.npy", small(17))),
    ("train.tokens.npy has a token outside the vocabulary of 16", replace("train.tokens.npy", small(18, 16))),
    ("val.offsets.npy has 4 offsets", replace("val.offsets.npy", whole(0, 5, 8, 18))),
    ("offsets.npy has offsets that do not run from 0 to 18", replace("val.offsets.npy", whole(1, 5, 8, 17, 18))),
    ("offsets.npy has offsets that do not run from 0 to 18", replace("val.offsets.npy", whole(0, 5, 8, 16, 17))),
    ("val.offsets.npy has offsets that do not increase", replace("val.offsets.npy", whole(0, 8, 5, 17, 18))),
    ("val.offsets.npy has offsets that do not increase", replace("val.offsets.npy", whole(0, 5, 5, 17, 18))),
    ("test.labels.npy has 3 labels", replace("test.labels.npy", small(3))),
    ("test.labels.npy has label 10, the classes are 0..9", replace("test.labels.npy", small(4, 10))),
]


@pytest.mark.parametrize(("finding", "damage"), DAMAGE)
def test_damage_is_one_line_with_the_file_and_the_way_out(
    tmp_path: Path, finding: str, damage: Callable[[Path], object]
) -> None:
    path = write(tmp_path)
    damage(path)
    with pytest.raises(ValueError) as caught:
        load(tmp_path, Toy(), "made")
    message = str(caught.value)
    assert not isinstance(caught.value, DataMissing)
    assert finding in message
    assert message.startswith(str(path))
    assert message.endswith(f": delete {path} and run make data task=toy task.source=made data_dir={tmp_path}")
    assert "\n" not in message


@pytest.mark.parametrize("wrong", [[[0, 3], [1, 1], [2, 4]], [[0, 3], [1, 1], [2, -1]], [[0, 3], [1, 1]]])
def test_damaged_pairs_are_named(tmp_path: Path, wrong: list[list[int]]) -> None:
    path = write(tmp_path, pairs=True)
    np.save(path / "test.pairs.npy", np.array(wrong, dtype=np.int32))
    with pytest.raises(ValueError, match=r"test.pairs.npy has (shape|an index outside)"):
        load(tmp_path, Toy(), "made")


def test_the_content_hash_sees_dtype_shape_and_bytes_and_not_the_layout() -> None:
    array = np.arange(6, dtype=np.uint8)
    others = [array.reshape(2, 3), array.astype(np.int8), array[::-1], array[:5]]
    assert len({content_sha256(each) for each in [array, *others]}) == 5
    assert content_sha256(np.asfortranarray(array.reshape(2, 3))) == content_sha256(array.reshape(2, 3))


def test_the_identity_changes_with_any_array() -> None:
    hashes = {split: {"sha256": {key: f"{split}{key}" for key in DTYPES}} for split in SPLITS}
    found = {identity_sha256(hashes)}
    for split in SPLITS:
        for key in DTYPES:
            changed = {name: {"sha256": dict(facts["sha256"])} for name, facts in hashes.items()}
            changed[split]["sha256"][key] = "other"
            found.add(identity_sha256(changed))
    assert len(found) == 13


def test_loading_needs_neither_torch_nor_tfds() -> None:
    code = "import sys, lra.data; print({'torch', 'tensorflow_datasets', 'lra.tasks'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


lengths_of_documents = st.lists(st.integers(1, 90), min_size=1, max_size=12)


def pad(documents: list[np.ndarray], size: int) -> tuple[list[list[int]], list[list[bool]]]:
    tokens = [document.tolist() + [0] * (size - len(document)) for document in documents]
    return tokens, [[place < len(document) for place in range(size)] for document in documents]


@given(lengths_of_documents, st.integers(1, 100), st.integers(0, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_collate_is_a_plain_loop(lengths: list[int], max_len: int, spare: int, data: st.DataObject) -> None:
    split = make_split(lengths)
    indices = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8)))
    documents = [split.tokens[split.offsets[i] : split.offsets[i + 1]][:max_len] for i in indices]
    longest = max(map(len, documents))
    for pad_to in (None, longest + spare):
        batch = collate(split, indices, max_len, pad_to)
        size = batch.tokens.shape[1]
        if pad_to is None:
            assert longest <= size <= max_len
            assert size == max_len or (size % 32 == 0 and size - longest < 32)
        else:
            assert size == pad_to
        tokens, mask = pad(documents, size)
        assert batch.tokens.tolist() == tokens
        assert batch.mask.tolist() == mask
        assert batch.labels.tolist() == split.labels[indices].tolist()
        assert (batch.tokens.dtype, batch.mask.dtype, batch.labels.dtype) == (torch.int64, torch.bool, torch.int64)


def test_collate_stacks_both_documents_of_a_pair() -> None:
    split = make_split([5, 40, 9, 1], pairs=[(0, 3), (1, 2), (2, 0)])
    batch = collate(split, np.array([2, 1]), max_len=35)
    assert batch.tokens.shape == batch.mask.shape == (2, 2, 35)
    for row, pair in enumerate([(2, 0), (1, 2)]):
        documents = [split.tokens[split.offsets[i] : split.offsets[i + 1]][:35] for i in pair]
        tokens, mask = pad(documents, 35)
        assert batch.tokens[row].tolist() == tokens
        assert batch.mask[row].tolist() == mask
    assert batch.labels.tolist() == [split.labels[2], split.labels[1]]


def test_a_token_0_is_no_padding() -> None:
    split = Split(np.zeros(7, np.uint8), np.array([0, 3, 7]), np.zeros(2, np.uint8))
    assert collate(split, np.array([0, 1]), 10).mask.sum(1).tolist() == [3, 4]


def test_too_small_a_pad_to_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pad_to=8 is shorter than the longest document of the batch, 9 tokens"):
        collate(make_split([5, 9]), np.array([0, 1]), max_len=20, pad_to=8)


sizes = {
    "examples": st.integers(1, 200),
    "batch_size": st.integers(1, 20),
    "seed": st.integers(0, 2**40),
    "pool": st.integers(1, 9),
}


def lengths_for(examples: int) -> np.ndarray:
    return np.random.default_rng(examples).integers(1, 50, examples)


@given(**sizes)
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_example_at_most_once_and_leaves_out_less_than_a_batch(
    examples: int, batch_size: int, seed: int, pool: int
) -> None:
    batch_size = min(batch_size, examples)
    sampler = Sampler(lengths_for(examples), batch_size, seed, pool)
    steps = examples // batch_size
    for epoch in (0, 1, 5):
        batches = [sampler.batch(epoch * steps + step) for step in range(steps)]
        seen = np.concatenate(batches)
        assert {len(batch) for batch in batches} == {batch_size}
        assert len(np.unique(seen)) == len(seen) == steps * batch_size
        assert seen.min() >= 0
        assert seen.max() < examples


@given(**sizes, steps=st.lists(st.integers(0, 500), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_batch_depends_on_seed_and_step_alone(
    examples: int, batch_size: int, seed: int, pool: int, steps: list[int]
) -> None:
    lengths, batch_size = lengths_for(examples), min(batch_size, examples)
    sampler = Sampler(lengths, batch_size, seed, pool)
    walked = {step: sampler.batch(step) for step in range(max(steps) + 1)}
    for step in steps:
        np.testing.assert_array_equal(Sampler(lengths, batch_size, seed, pool).batch(step), walked[step])
        np.testing.assert_array_equal(sampler.batch(step), walked[step])


def test_changing_a_batch_changes_no_later_one() -> None:
    sampler = Sampler(lengths_for(40), 8, seed=1)
    first = sampler.batch(3)
    first[:] = -1
    assert sampler.batch(3).min() >= 0


def test_the_batches_are_those_of_every_other_machine() -> None:
    sampler = Sampler(np.arange(1, 13), 4, seed=7, pool=2)
    assert [sampler.batch(step).tolist() for step in range(4)] == [
        [1, 2, 3, 4],
        [0, 5, 9, 10],
        [6, 7, 8, 11],
        [1, 2, 3, 4],
    ]


def test_seeds_and_epochs_differ() -> None:
    firsts = {tuple(Sampler(lengths_for(100), 10, seed).batch(step)) for seed in (0, 1) for step in (0, 10, 20)}
    assert len(firsts) == 6


def test_batches_of_a_pool_hold_like_lengths_and_come_in_random_order() -> None:
    lengths = np.random.default_rng(0).permutation(np.arange(501, 1999))
    sampler = Sampler(lengths, 16, seed=0, pool=50)
    batches = [lengths[sampler.batch(step)] for step in range(len(lengths) // 16)]
    real = sum(int(batch.sum()) for batch in batches)
    padded = sum(int(-(-batch.max() // 32) * 32) * len(batch) for batch in batches)
    assert real / padded >= 0.95
    means = [batch.mean() for batch in batches]
    assert sum(a < b for a, b in pairwise(means)) in range(30, 64)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_size": 11}, "batch_size=11 must be between 1 and the number of examples, 10"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"batch_size": 2, "pool": 0}, "pool=0"),
        ({"batch_size": 2, "seed": -1}, "seed=-1"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sampler(np.ones(10), **{"seed": 0, **arguments})


@given(lengths_of_documents, st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_evaluation_covers_every_example_once_longest_first(lengths: list[int], batch_size: int) -> None:
    split = make_split(lengths)
    batches = list(evaluation_batches(split, batch_size))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert split.lengths[np.concatenate(batches)].tolist() == sorted(lengths, reverse=True)


def test_evaluation_of_nothing_at_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        list(evaluation_batches(make_split([3]), 0))
