"""Inputs of the studies: files of anyone's, generated ones, the command that writes and shows them."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.studies import inputs, qkv
from benchmarks.studies.generated import Options, generate, usual
from benchmarks.studies.inputs import Size, heated, is_file, made, read, save, take
from benchmarks.studies.mass import entropies, mass
from lra.words import WordError

NOWHERE = Size(1, 1, 1, 1)
# Two layers of three examples, 2 heads, 16 tokens, 4 channels.
SHAPE = (2, 3, 2, 16, 4)
REAL = np.arange(16) < np.array([3, 16, 9])[:, None]


def arrays(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers that bfloat16 holds."""
    draw = np.random.default_rng(seed)
    return {name: draw.integers(-64, 64, shape) / 32 for name in "qkv"}


def written(folder: Path, **given: Any) -> Path:
    """A .npz of `arrays` with these in their place; None leaves one out."""
    file = folder / "mine.npz"
    np.savez(file, **{name: x for name, x in {**arrays(), **given}.items() if x is not None})
    return file


def softmax_entropy(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(N,) of one head, the plain way in float64."""
    scores = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(q.shape[1])
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return -(p * np.log(np.maximum(p, 1e-300))).sum(1)


def test_the_same_numbers_have_the_same_hash_in_any_container_shape_and_dtype(tmp_path: Path) -> None:
    mask = {"mask": REAL}
    expected = read(written(tmp_path, **mask))
    assert expected.q.shape == (6, 2, 16, 4)
    assert expected.instances == ("0, 0", "0, 1", "0, 2", "1, 0", "1, 1", "1, 2")
    assert expected.mask is not None
    np.testing.assert_array_equal(expected.mask, np.concatenate([REAL, REAL]))
    hashes = {expected.sha256}
    for name in ("f2", ">f4", "f8"):
        hashes.add(read(written(tmp_path, **mask, **{key: x.astype(name) for key, x in arrays().items()})).sha256)
    flat = {key: np.asfortranarray(x.reshape(6, *SHAPE[2:])) for key, x in arrays().items()}
    hashes.add(read(written(tmp_path, mask=np.concatenate([REAL, REAL]), **flat)).sha256)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        tensors = {key: torch.from_numpy(x).to(dtype) for key, x in arrays().items()} | {"mask": torch.from_numpy(REAL)}
        save_file(tensors, tmp_path / "mine.safetensors", {"about": '{"model": "mine"}'})
        brought = take(str(tmp_path / "mine.safetensors"), NOWHERE)
        assert brought.about == {"model": "mine"}
        hashes.add(brought.sha256)
    assert len(hashes) == 1
    assert read(written(tmp_path)).sha256 not in hashes
    assert read(written(tmp_path, **mask, v=-arrays()["v"])).sha256 not in hashes


def test_what_stands_in_padded_places_is_nothing(tmp_path: Path) -> None:
    filled = {key: np.where(REAL[:, None, :, None], x, np.nan) for key, x in arrays().items()}
    brought = read(written(tmp_path, mask=REAL, **filled))
    assert brought.sha256 == read(written(tmp_path, mask=REAL)).sha256
    assert (brought.k[0, :, 3:] == 0).all()


def test_a_mask_of_real_tokens_alone_is_no_mask(tmp_path: Path) -> None:
    assert read(written(tmp_path, mask=np.ones(16, dtype=bool)))[4] is None
    assert read(written(tmp_path, mask=np.ones(16, dtype=bool))).sha256 == read(written(tmp_path)).sha256


def test_a_file_holds_what_was_saved_and_the_same_inputs_are_the_same_bytes(tmp_path: Path) -> None:
    third = [x.reshape(6, 2, 16, 4) / 3 for x in arrays().values()]
    names = [f"layer {i}" for i in range(6)]
    for dtype in ("float16", "float32"):
        first = made("first", third, np.concatenate([REAL, REAL]), names, {"seed": 1}, dtype)
        for name in ("a.npz", "b.npz"):
            save(tmp_path / name, first, dtype)
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        again = take(str(tmp_path / "a.npz"), NOWHERE)
        assert again.sha256 == first.sha256
        assert (again.name, again.instances, again.about) == ("a", tuple(names), {"seed": 1})
        for mine, theirs in zip(first[1:5], again[1:5], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(WordError, match="float16 does not hold the numbers of q"):
        save(tmp_path / "c.npz", first, "float16")
    with pytest.raises(WordError, match="must end in .npz"):
        save(tmp_path / "c.safetensors", first)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def holed(value: float) -> np.ndarray:
    x = arrays()["k"]
    x[1, 2, 0, 5, 3] = value
    return x


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"k": None}, "there is no k"),
        ({"k": arrays()["k"][:1]}, "k has the shape (1, 3, 2, 16, 4), it must be that of q, (2, 3, 2, 16, 4)"),
        ({key: np.zeros((16, 4)) for key in "qkv"}, "q has the shape (16, 4)"),
        ({key: np.zeros((2, 0, 4)) for key in "qkv"}, "not empty"),
        ({"k": holed(np.nan)}, "k holds a number that is not finite"),
        ({"v": holed(np.inf)}, "v holds a number that is not finite"),
        ({"q": holed(1e39)}, "q holds a number that is not finite in float32"),
        ({"v": arrays()["v"].astype(int)}, "v is of int64, it must be of floating-point numbers"),
        ({"v": np.array([None])}, "v is of Python objects"),
        ({"mask": REAL.astype(float)}, "mask is of float, it must be of bool"),
        ({"mask": REAL.T}, "mask has the shape (16, 3), which does not broadcast to (2, 3, 16)"),
        ({"mask": REAL[:, :1]}, "its last axis must be the 16 tokens"),
        ({"mask": REAL & (np.arange(3) != 1)[:, None]}, "mask leaves instance 1 without a real token"),
        ({"masks": REAL}, "unknown array 'masks', known are q, k, v, mask, about; did you mean 'mask'?"),
        ({"about": np.array("[1]")}, "about is not the JSON text of an object"),
        ({"about": np.array(["{}"])}, "about has the shape (1,)"),
        ({"about": np.array('{"instances": ["one"]}')}, "about names instances that are not 6 texts"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name_and_the_rule(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    file = written(tmp_path, **given)
    with pytest.raises(WordError) as caught:
        take(str(file), NOWHERE)
    assert str(caught.value).startswith(f"{file}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_would_not_fit_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as members:
        members.writestr("q.npy", header.getvalue())
    with pytest.raises(WordError, match="q of shape .* needs 4398046511104 bytes, at most 2147483648 are read"):
        take(str(tmp_path / "huge.npz"), NOWHERE)
    monkeypatch.setattr(inputs, "LARGEST_ARRAY", 4 * 768 - 1)
    save_file({key: torch.from_numpy(x).half() for key, x in arrays().items()}, tmp_path / "large.safetensors")
    for file in (written(tmp_path), tmp_path / "large.safetensors"):
        with pytest.raises(WordError, match="[qkv] of shape .* needs"):
            take(str(file), NOWHERE)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_damaged_file_is_refused_or_harmless(tmp_path: Path, suffix: str) -> None:
    whole = written(tmp_path)
    if suffix == ".safetensors":
        whole = tmp_path / "mine.safetensors"
        save_file({key: torch.from_numpy(x) for key, x in arrays().items()}, whole)
    content, expected = whole.read_bytes(), read(whole)
    broken = tmp_path / f"broken{suffix}"
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        broken.write_bytes(content[:size])
        with pytest.raises(WordError, match="is not a whole"):
            read(broken)
    for place in np.random.default_rng(0).integers(0, len(content) if suffix == ".npz" else 200, 40):
        broken.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        # Of a zip, dates and permissions are not read.
        with suppress(WordError):
            assert read(broken).sha256 == expected.sha256


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("nowhere.npz", "inputs nowhere.npz: there is no such file; `make qkv` writes one"),
        ("genrated", "did you mean 'generated'?"),
        ("q.csv", "or the path of a .npz or .safetensors file"),
        ("generated:localty=1", "unknown key 'localty', known are entropy, temperature, locality, span, seed, dtype"),
        ("generated:seed", "'seed' is not of the form key=value"),
        ("generated:locality=1.1", "locality=1.1 must be a number of at least 0 and at most 1"),
        ("generated:entropy=nan", "entropy=nan must be a number of at least 0"),
        ("generated:span=0", "span=0 must be a whole number from 1 to"),
        ("generated:entropy=1:temperature=1", "entropy=1 and temperature=1: one of the two"),
        ("generated:entropy=4.5", "entropy=4.5 is above ln 64 = 4.159 nats, the most there is"),
        ("generated:dtype=bfloat16", "dtype=bfloat16 is not one of float16, float32; did you mean 'float16'?"),
        ("generated:temperature=1e6:locality=1:seed=3:entropy=auto", None),
    ],
)
def test_a_wrong_word_is_one_line(word: str, says: str | None) -> None:
    if says is None:
        assert take(word, Size(64, 1, 4, 1)).about["temperature"] == 1e6
        return
    with pytest.raises(WordError) as caught:
        take(word, Size(64, 1, 4, 1))
    assert says in str(caught.value)


def test_generated_inputs_are_those_of_every_other_machine() -> None:
    # Pinned: a change of them is a change of every published figure, and needs another VERSION.
    warm = take("generated:temperature=2:locality=0.3:span=3:seed=7", Size(50, 2, 4, 2))
    assert warm.sha256 == "a92fc8cf3fb86eea20d8ff832e8c84bd9ef5650b45c26e9058604ffee0546958"
    met = take("generated", Size(128, 2, 8, 1))
    assert (met.about["temperature"], met.sha256) == (
        3.118,
        "d760d481f26f8883e7fffd8ad498252bac7fd7586367111b608e75c3b3e21d0a",
    )
    assert met.name == "generated"
    assert met.about == {
        "source": "generated", "version": 1, "entropy": usual(128), "temperature": 3.118, "locality": 0.5, "span": 8,
        "seed": 0, "dtype": "float16",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (512, ""),
        (300, ":entropy=0.4:locality=0.9"),
        (100, ":entropy=4.6:span=40"),
        (64, ":entropy=0:locality=0"),
        (64, ":entropy=4.1588:locality=1"),
        (512, ":entropy=1.5:locality=1:dtype=float32"),
    ],
)
def test_the_entropy_that_is_asked_for_is_met(n: int, words: str) -> None:
    inputs = take(f"generated{words}", Size(n, 2, 16, 2))
    asked = inputs.about["entropy"]
    rows = [softmax_entropy(inputs.q[i, h], inputs.k[i, h]).mean() for i in range(2) for h in range(2)]
    assert abs(np.mean(rows) - asked) <= 0.0201
    np.testing.assert_allclose(entropies(inputs).ravel(), rows, atol=2e-5)


def test_the_usual_entropy_is_the_papers_at_its_two_lengths_and_below_ln_n_everywhere() -> None:
    assert [usual(512), usual(4096)] == [3.0, 4.1]
    entropy = [usual(2**power) for power in range(18)]
    assert entropy == sorted(entropy)
    assert all(low <= power * np.log(2) for power, low in enumerate(entropy))


def test_locality_is_the_share_that_depends_on_distance() -> None:
    near = [mass(take(f"generated:locality={x}", Size(256, 2, 32, 1)), 64).near.mean() for x in (0, 0.25, 0.5, 1)]
    assert near == sorted(near)
    # Of 256 keys 65 are near, fewer at both ends.
    assert abs(near[0] - (65 * 256 - 32 * 33) / 256**2) < 0.01
    assert near[-1] > 0.9


def test_the_smooth_part_falls_to_a_quarter_at_its_span_which_doubles_from_head_to_head() -> None:
    smooth = take("generated:locality=1:span=4:temperature=1:dtype=float32", Size(2048, 5, 64, 1))
    for head, span in enumerate((4, 8, 16, 32, 4)):
        v = smooth.v[0, head].astype(np.float64)
        correlation = [(v[: 2048 - lag] * v[lag:]).mean() for lag in (0, span, 2 * span)]
        np.testing.assert_allclose(correlation, [1, 0.25, 0], atol=0.08)
    np.testing.assert_array_equal(smooth.q, smooth.k)
    apart = take("generated:locality=0:temperature=1:dtype=float32", Size(2048, 1, 64, 1))
    lagged = [(a[:, :, :2047] * b[:, :, 1:]).mean() for a in apart[1:4] for b in apart[1:4]]
    np.testing.assert_allclose(lagged, np.zeros(9), atol=0.01)


def test_more_instances_and_heads_leave_the_others_as_they_are() -> None:
    chosen = Options(temperature=1)
    few, many = (generate(Size(40, heads, 4, instances), chosen) for heads, instances in ((1, 1), (3, 2)))
    for a, b in zip(few[1:4], many[1:4], strict=True):
        np.testing.assert_array_equal(a, b[:1, :1])
        assert len(np.unique(b.reshape(6, -1), axis=0)) == 6
    assert generate(Size(40, 1, 4, 1), chosen._replace(seed=1)).sha256 != few.sha256


def test_generated_inputs_that_no_memory_holds_are_refused() -> None:
    with pytest.raises(WordError, match="n=131072 x heads=256 .* are more than"):
        generate(Size(1 << 17, 1 << 8, 64, 1), Options())
    with pytest.raises(WordError, match="n=0 must be a whole number from 1"):
        generate(Size(0, 1, 1, 1), Options())


def test_heating_multiplies_all_logits() -> None:
    cold = take("generated:temperature=1:dtype=float32", Size(32, 2, 8, 1))
    hot = heated(cold, 4)
    np.testing.assert_array_equal(hot.q @ hot.k.swapaxes(2, 3), 4 * (cold.q @ cold.k.swapaxes(2, 3)))
    assert hot.sha256 == take("generated:temperature=4:dtype=float32", Size(32, 2, 8, 1)).sha256
    assert hot.about["heated"] == 4
    assert heated(cold, 1) is cold
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        heated(cold, 0)


def test_mass_is_measured_among_real_tokens(tmp_path: Path) -> None:
    brought = read(written(tmp_path, mask=REAL))
    found = mass(brought, 4)
    for i, real in enumerate((3, 16, 9, 3, 16, 9)):
        for h in range(2):
            q, k = brought.q[i, h, :real], brought.k[i, h, :real]
            rows = softmax_entropy(q, k)
            np.testing.assert_allclose(
                [found.mean[i, h], found.lowest[i, h], found.highest[i, h]],
                [rows.mean(), rows.min(), rows.max()],
                atol=1e-6,
            )
            p = np.exp(q.astype(np.float64) @ k.T / 2)
            close = np.abs(np.subtract.outer(np.arange(real), np.arange(real))) <= 2
            np.testing.assert_allclose(found.near[i, h], ((p * close).sum(1) / p.sum(1)).mean(), rtol=1e-6)


def answer(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert qkv.main(words) == code
    out = capsys.readouterr()
    assert (out.err == "") is (code == 0)
    return out.out if code == 0 else out.err


def test_the_command_writes_what_a_study_generates_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = answer(capsys, "n=64", "entropy=2.5", "locality=0.25", "instances=2")
    file = Path("runs/qkv/generated-64-2x2x32-entropy=2.5-locality=0.25.npz")
    assert list(file.parent.iterdir()) == [file]
    brought = take(str(file), NOWHERE)
    assert brought.sha256 == take("generated:locality=0.25:entropy=2.5", Size(64, 2, 32, 2)).sha256
    assert f"{file}, {file.stat().st_size:,} bytes" in said
    assert f"hash   {brought.sha256}" in said
    assert f"temperature {brought.about['temperature']}" in said
    assert "head 1" in said
    assert f"all                entropy {entropies(brought).mean():.3f} nats" in said
    content = file.read_bytes()
    assert answer(capsys, "n=64", "entropy=2.5", "locality=0.25", "instances=2") == said
    assert file.read_bytes() == content
    assert said.startswith(answer(capsys, f"check={file}"))


@pytest.mark.parametrize("content", [b"", None])
def test_the_command_never_writes_over_something_else(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kept.npz"
    if content is None:
        answer(capsys, "n=16", "seed=1", f"out={out}")
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    assert str(out) in answer(capsys, "n=16", f"out={out}", code=2)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "one of run=<directory>, n=<tokens> and check=<file> says what to do; here is none of them"),
        (("n=8", "check=x.npz"), "here is n=8 and check=x.npz"),
        (("n=8", "examples=2"), "examples=2 does not go with n=; heads, head_dim, instances, entropy"),
        (("run=x", "locality=1"), "locality=1 does not go with run=; checkpoint, examples"),
        (("check=x.npz", "out=y.npz"), "out=y.npz does not go with check=; window do"),
        (("check=generated",), "check=generated must be a file; n= generates one"),
        (("n=eight",), "n=eight must be a whole number from 1 to 131072"),
        (("n=8", "window=-1"), "window=-1 must be a whole number"),
        (("n=8", "out=x.txt"), "out=x.txt must end in .npz"),
        (("heds=3",), "unknown key 'heds'"),
        (("run=",), "is not the directory of a run"),
    ],
)
def test_the_command_answers_a_wrong_word_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = answer(capsys, *words, code=2)
    assert says in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_file_is_generated() -> None:
    assert [is_file(word) for word in ("generated", "generated:seed=1", "a.npz", "generated.npz")] == [
        False, False, True, True,
    ]  # fmt: skip
