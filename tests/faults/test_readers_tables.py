"""Numbers that come from elsewhere: published tables, queries and keys in files, prepared arrays."""

from __future__ import annotations

import io
import json
import math
import shutil
import struct
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from benchmarks.studies import inputs
from benchmarks.studies import published as studies
from lra import data
from lra.prepare import prepare
from lra.published import MARKS, PUBLISHED, Published, read_published
from lra.tasks import task
from lra.words import WordError
from tests.faults.foreign import CHUNKS, attack, payload
from tests.faults.mutation import mutated, remembered, repickled, retabled, spoiled_json, zipped


def of_table(draw: Random, content: bytes) -> bytes:
    return retabled(draw, content, b",") if draw.random() < 0.6 else mutated(draw, content)


@CHUNKS
def test_published_accuracies_are_read_or_refused_with_file_and_line(
    room: Path, tally: Counter[str], chunk: int
) -> None:
    content = b"".join((PUBLISHED / "zeng_2022.csv").read_bytes().splitlines(keepends=True)[:6])
    file = room / "lra.csv"

    def read(given: bytes) -> None:
        file.write_bytes(given)
        for value in read_published(room):
            assert type(value) is Published
            assert value.status in MARKS
            assert value.accuracy is None or 0 <= value.accuracy <= 100
            assert value.marked.isprintable()
            assert value.attn.isprintable()

    attack("published accuracies", chunk, lambda draw: of_table(draw, content), read, tally, names=str(file))


@CHUNKS
def test_published_studies_are_read_or_refused_with_file_and_line(room: Path, tally: Counter[str], chunk: int) -> None:
    files = {
        name: b"".join((studies.PUBLISHED / f"{name}.csv").read_bytes().splitlines(keepends=True)[:5])
        for name in studies.KINDS
    }

    def make(draw: Random) -> tuple[str, bytes]:
        name = draw.choice(list(files))
        return name, of_table(draw, files[name])

    def read(given: tuple[str, bytes]) -> None:
        name, content = given
        (room / f"{name}.csv").write_bytes(content)
        kind = studies.KINDS[name]
        for line in studies.published(name, room):
            assert line["source"]
            assert all(math.isfinite(line.number(key)) for key in kind.numbers)
            assert all(line.perhaps(key) is not None or not line[key] for key in kind.perhaps)

    attack("published studies", chunk, make, read, tally, names=str(room))


def npy(draw: Random, array: np.ndarray, trap: Path) -> bytes:
    """An array as a .npy file, mostly with another header."""
    out = io.BytesIO()
    np.save(out, array)
    content = out.getvalue()
    way = draw.randrange(6)
    if way == 0:
        return mutated(draw, content)
    if way == 1:
        return payload(trap) if draw.random() < 0.5 else b"\x93NUMPY\x01\x00" + payload(trap)
    shapes = ("(2**60,)", f"({2**62},)", "(-1,)", "(1e9,)", "()", "(True,)", "(0,)", "(9,9)", f"({2**40},{2**40})",
              f"({'9' * 400},)", "(1L,)", "[1]", "'x'", "(" * 150)  # fmt: skip
    types = ("'|O'", "'<f8'", "'<U9999999'", "'|V0'", "'<m8[ns]'", "[('a','<f4')]", "'>f4'", "'<c16'", "'\\d'", "None",
             f"open({str(trap)!r},'w')", "'<f4,<f4'", "1 is 1", "'<u1'", "'<f2'", "'|b1'")  # fmt: skip
    kept = (f"'{array.dtype.str}'", str(array.shape))
    said = [draw.choice(types), kept[1]] if way < 4 else [kept[0], draw.choice(shapes)]
    extra = draw.choice(("", "", "'x': 1,", "# \n", "0777", "\x00"))
    head = (
        f"{{'descr': {said[0]}, 'fortran_order': {draw.choice(('False', 'True', '1'))}, 'shape': {said[1]}, {extra}}}\n"
    )
    version = draw.choice((1, 1, 1, 2, 3, 9))
    size = struct.pack("<H" if version == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes([version, 0]) + size + head.encode("latin-1") + array.tobytes()


def sound(qkv: inputs.QKV) -> None:
    assert qkv.q.shape == qkv.k.shape == qkv.v.shape
    assert qkv.q.ndim == 4
    assert qkv.q.size
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in (qkv.q, qkv.k, qkv.v))
    assert qkv.mask is None or (qkv.mask.dtype == np.bool_ and qkv.mask.shape == (qkv.q.shape[0], qkv.q.shape[2]))
    assert qkv.mask is None or qkv.mask.any(axis=1).all()
    assert len(qkv.instances) == len(qkv.q)
    assert all(name.isprintable() for name in qkv.instances)
    assert type(qkv.about) is dict


@CHUNKS
def test_queries_in_an_npz_are_finite_numbers_or_one_line(room: Path, tally: Counter[str], chunk: int) -> None:
    file, trap = room / "q.npz", room / "trap"
    numbers = np.arange(12, dtype=np.float16).reshape(1, 1, 3, 4)
    mask = np.array([[True, True, False]])
    arrays: dict[str, Any] = {"q": numbers, "k": numbers, "v": numbers, "mask": mask}
    np.savez(file, **arrays, about=np.array(json.dumps({"source": "x", "instances": ["one"]})))
    content = file.read_bytes()

    def make(draw: Random) -> bytes:
        way = draw.randrange(4)
        if way == 0:
            return mutated(draw, content)
        if way == 1:
            return repickled(draw, content, payload(trap))
        about = spoiled_json(draw, {"source": "x", "instances": ["one"]}).decode("latin-1")
        plain = {**arrays, "about": np.array(about if way == 2 else "{}")}
        members = [(f"{name}.npy", npy_of(array)) for name, array in plain.items()]
        at = draw.randrange(len(members))
        if way == 3:
            members[at] = (members[at][0], npy(draw, plain[members[at][0][:-4]], trap))
        elif draw.random() < 0.3:
            members = remembered(draw, members, payload(trap))
        return zipped(draw, members)

    def read(given: bytes) -> None:
        file.write_bytes(given)
        try:
            sound(inputs.read(file))
        finally:
            assert not trap.exists()

    attack("q, k, v in .npz", chunk, make, read, tally, WordError, names=str(file))


def npy_of(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@CHUNKS
def test_queries_in_safetensors_are_finite_numbers_or_one_line(room: Path, tally: Counter[str], chunk: int) -> None:
    file = room / "q.safetensors"
    body = np.arange(12, dtype=np.float16).tobytes()
    head = {
        "__metadata__": {"about": json.dumps({"source": "x", "instances": ["one"]})},
        **{
            name: {"dtype": "F16", "shape": [1, 1, 3, 4], "data_offsets": [24 * i, 24 * i + 24]}
            for i, name in enumerate("qkv")
        },
        "mask": {"dtype": "BOOL", "shape": [1, 3], "data_offsets": [72, 75]},
    }
    whole = body * 3 + b"\x01\x01\x00"

    def make(draw: Random) -> bytes:
        way = draw.randrange(5)
        said = spoiled_json(draw, head) if way < 3 else json.dumps(head).encode()
        if way == 0:
            for kind in ("F64", "BF16", "F8_E4M3", "I8", "U8", "BOOL", "C64", "F4", "F6_E2M3", "E8M0"):
                if draw.random() < 0.3:
                    said = said.replace(b"F16", kind.encode(), draw.choice((1, 3)))
        size = draw.choice((len(said),) * 6 + (0, 2**63, 2**64 - 1, 2**40, len(said) + 1))
        content = struct.pack("<Q", size) + said + whole
        return mutated(draw, content) if way == 4 else content

    def read(given: bytes) -> None:
        file.write_bytes(given)
        sound(inputs.read(file))

    attack("q, k, v in .safetensors", chunk, make, read, tally, WordError, names=str(file))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny prepared data set of pairs, which has every array there is."""
    folder = tmp_path_factory.mktemp("data")
    prepare(task({"name": "retrieval", "source": "synthetic"}), "synthetic", folder)
    return folder


@CHUNKS
def test_prepared_data_are_whole_or_one_line(room: Path, prepared: Path, tally: Counter[str], chunk: int) -> None:
    kind = task({"name": "retrieval", "source": "synthetic"})
    trap = room / "trap"
    shutil.copytree(prepared, room / "data")
    folder = data.folder(room / "data", kind, "synthetic")
    shrink(folder)
    data.load(room / "data", kind, "synthetic")
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    manifest = json.loads(contents["manifest.json"])

    def make(draw: Random) -> tuple[str, bytes]:
        name = draw.choice([*contents, "manifest.json", "manifest.json"])
        if name == "manifest.json":
            return name, resealed(spoiled_json(draw, manifest)) if draw.random() < 0.8 else mutated(
                draw, contents[name]
            )
        way = draw.randrange(4)
        array = np.load(folder / name)
        if way == 0:
            return name, mutated(draw, contents[name])
        if way == 1:
            return name, npy(draw, array, trap)
        flat = array.reshape(-1)
        limits = np.iinfo(array.dtype)
        for _ in range(draw.choice((1, 2, 4))):
            flat[draw.randrange(len(flat))] = draw.choice(
                (limits.min, limits.max, limits.max - 1, 0, 1, limits.max // 2)
            )
        return name, npy_of(array)

    def read(given: tuple[str, bytes]) -> None:
        name, content = given
        (folder / name).write_bytes(content)
        try:
            loaded = data.load(room / "data", kind, "synthetic")
            for split in (loaded.train, loaded.val, loaded.test):
                assert split.offsets[0] == 0
                assert split.offsets[-1] == len(split.tokens)
                assert (split.offsets[:-1] < split.offsets[1:]).all()
                assert split.pairs is not None
                assert split.pairs.shape == (len(split.labels), 2)
                assert ((split.pairs >= 0) & (split.pairs < len(split.offsets) - 1)).all()
                assert (split.labels < loaded.manifest["classes"]).all()
                assert (split.tokens < len(loaded.manifest["vocabulary"])).all()
        finally:
            (folder / name).write_bytes(contents[name])
            assert not trap.exists()

    attack("prepared arrays and manifest", chunk, make, read, tally, names=str(folder))


def shrink(folder: Path) -> None:
    """Four examples of each split are enough to break."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    for name, facts in manifest["splits"].items():
        arrays = {key: np.load(folder / f"{name}.{key}.npy") for key in ("tokens", "offsets", "labels", "pairs")}
        arrays["offsets"] = arrays["offsets"][:7]
        arrays["tokens"] = arrays["tokens"][: arrays["offsets"][-1]]
        arrays["labels"], arrays["pairs"] = arrays["labels"][:4], arrays["pairs"][:4] % 6
        facts |= {"examples": 4, "documents": 6, "tokens": len(arrays["tokens"])}
        for key, array in arrays.items():
            np.save(folder / f"{name}.{key}.npy", array)
    file.write_bytes(resealed(json.dumps(manifest).encode()))


def resealed(content: bytes) -> bytes:
    """A manifest with the hash that belongs to it, where it has one."""
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(manifest, dict) or "manifest_sha256" not in manifest:
        return content
    from lra import seal

    return json.dumps(seal.sealed(manifest, "manifest_sha256")).encode()
