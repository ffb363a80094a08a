"""The study of approximation: published budgets, errors as an obvious oracle has them, rows that are kept."""

from __future__ import annotations

import csv
import errno
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from attention_zoo import ZOO
from benchmarks.rows import save_rows
from benchmarks.studies import approximation, ledger
from benchmarks.studies.approximation import HEADS, MAIN, HeadRow, Row, main
from benchmarks.studies.contest import OUT_OF_MEMORY, Entrant, Rules, Taken
from benchmarks.studies.cores import Given, rounded, work
from benchmarks.studies.errors import core_of, errors, exact
from benchmarks.studies.inputs import QKV
from benchmarks.studies.sweeps import Choice, sweep, swept

# Section 5 of "Multi Resolution Analysis (MRA) for Approximate Self-Attention": the workload of each published value.
PUBLISHED = {
    ("longformer", 512): {16: 0.0332, 32: 0.06445, 64: 0.127, 128: 0.252},
    ("bigbird", 512): {8: 0.125, 16: 0.25, 32: 0.5},
    ("nystromformer", 512): {16: 0.03125, 32: 0.0625, 64: 0.125, 128: 0.25},
    ("scatterbrain", 512): {16: 0.03125, 32: 0.0625, 64: 0.125, 128: 0.25},
    ("mra2", 512): {1: 0.0625, 2: 0.125, 4: 0.25, 8: 0.5},
    ("longformer", 4096): {
        16: 0.00415, 32: 0.008057, 64: 0.01587, 128: 0.03149, 256: 0.06274, 512: 0.1252, 1024: 0.2502
    },
    # The paper's list ends at 256, its results at 128.
    ("bigbird", 4096): {8: 0.01562, 16: 0.03125, 32: 0.0625, 64: 0.125, 128: 0.25, 256: 0.5},
    ("nystromformer", 4096): {
        16: 0.003906, 32: 0.007812, 64: 0.01562, 128: 0.03125, 256: 0.0625, 512: 0.125, 1024: 0.25
    },
    ("scatterbrain", 4096): {
        16: 0.003906, 32: 0.007812, 64: 0.01562, 128: 0.03125, 256: 0.0625, 512: 0.125, 1024: 0.25
    },
    ("mra2", 4096): {1: 0.007812, 2: 0.01562, 4: 0.03125, 8: 0.0625, 16: 0.125, 32: 0.25, 64: 0.5},
}  # fmt: skip
PUBLISHED |= {("mra2_s", n): PUBLISHED["mra2", n] for n in (512, 4096)}


def some(n: int, mask: np.ndarray | None = None, heads: int = 2, instances: int = 1) -> QKV:
    """Small inputs, sharp enough that no two rows of weights are alike."""
    drawn = np.random.default_rng(0).normal(size=(3, instances, heads, n, 8)).astype(np.float32)
    names = tuple(f"instance {i}" for i in range(instances))
    return QKV("some", 2 * drawn[0], 2 * drawn[1], drawn[2], mask, names, "0" * 64, {})


@pytest.mark.parametrize(("attn", "n"), PUBLISHED)
def test_the_paper_s_variants_have_the_paper_s_values_and_workloads(attn: str, n: int) -> None:
    found = {choice.value: choice.workload for choice in sweep(attn, n)}
    assert list(found) == list(PUBLISHED[attn, n])
    assert_close(list(found.values()), list(PUBLISHED[attn, n].values()), rtol=1e-3, atol=0)


def test_the_paper_s_fixed_parameters_are_set() -> None:
    fixed = {name: dict(sweep(name, 512)[0].keywords) for name in ("longformer", "bigbird", "mra2", "mra2_s")}
    assert fixed["longformer"]["global_tokens"] == 1
    assert fixed["bigbird"]["random_blocks"] == 3
    assert fixed["mra2"] == fixed["mra2_s"] == {"block_size": 32, "blocks_per_row": 1}


def test_every_variant_but_softmax_is_swept() -> None:
    assert set(swept()) == ZOO.keys() - {"softmax"}


def test_an_attention_of_ones_own_is_measured_at_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ZOO, "mine", ZOO["linformer"])
    assert swept()[-1] == "mine"
    assert sweep("mine", 512) == [Choice("mine", "", 0, (), None, aims=True)]


@pytest.mark.parametrize("attn", swept())
def test_every_choice_runs_whatever_the_length(attn: str) -> None:
    for n in (1, 2, 31, 64, 100):
        qkv = some(n)
        q, k, v = (torch.from_numpy(x) for x in qkv[1:4])
        for choice in sweep(attn, n):
            assert core_of(choice, qkv)(q, k, v).isfinite().all(), (choice, n)


@pytest.mark.parametrize("attn", swept())
def test_a_sweep_grows_and_stays_within_softmax_s_work(attn: str) -> None:
    for n in (1, 7, 100, 512, 2000, 4096, 2**16):
        chosen = sweep(attn, n)
        assert chosen
        assert all(one.value < other.value for one, other in zip(chosen, chosen[1:], strict=False))
        loads = [choice.workload for choice in chosen if choice.workload is not None]
        assert loads == sorted(loads)
        assert all(0 < load <= 1 for load in loads)
        # Of these the shape alone is looked at.
        shaped = some(1)._replace(q=np.broadcast_to(np.float32(0), (1, 1, n, 8)))
        if n in (512, 4096):
            assert all(isinstance(core_of(choice, shaped), ZOO[attn]) for choice in chosen)


def dense(qkv: QKV) -> tuple[np.ndarray, np.ndarray]:
    """Softmax attention and its entropy, one query at a time."""
    out, entropy = np.zeros(qkv.q.shape), np.zeros(qkv.q.shape[:2])
    for i, h in np.ndindex(*entropy.shape):
        real = [t for t in range(qkv.q.shape[2]) if qkv.mask is None or qkv.mask[i, t]]
        for t in real:
            logits = [float(qkv.q[i, h, t].astype(float) @ qkv.k[i, h, s].astype(float)) / math.sqrt(8) for s in real]
            weights = [math.exp(x) / math.fsum(map(math.exp, logits)) for x in logits]
            out[i, h, t] = sum(w * qkv.v[i, h, s].astype(float) for w, s in zip(weights, real, strict=True))
            entropy[i, h] -= math.fsum(w * math.log(w) for w in weights) / len(real)
    return out, entropy


MASK = np.random.default_rng(1).random((2, 13)) < 0.6


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_exact_is_softmax_attention_and_its_entropy(mask: np.ndarray | None) -> None:
    qkv = some(13, mask, instances=2)
    for found, expected in zip(exact(qkv), dense(qkv), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_exact_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exact(some(13))
    monkeypatch.setattr("benchmarks.studies.errors.ROWS", 5)
    for found, expected in zip(exact(some(13)), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_entropy_is_that_of_the_extremes() -> None:
    qkv = some(16)
    same = qkv._replace(k=np.ones_like(qkv.k))
    np.testing.assert_allclose(exact(same)[1], math.log(16))
    # All weight on one key, the weights of others far below the smallest number.
    eye = np.tile(np.eye(16, dtype=np.float32) * 1e4, (1, 2, 1, 1))
    assert (exact(qkv._replace(q=eye, k=eye, v=eye))[1] == 0).all()


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_errors_are_relative_norms_over_real_tokens(mask: np.ndarray | None) -> None:
    qkv = some(13, mask, instances=2)
    right = exact(qkv)[0]
    out = right * 1.25
    if mask is not None:
        out[~np.broadcast_to(mask[:, None, :, None], out.shape)] = math.nan
    np.testing.assert_allclose(errors(out, right, mask), 0.25)
    np.testing.assert_allclose(errors(torch.from_numpy(out), right, mask), 0.25)


def test_an_output_that_is_not_finite_is_no_small_error() -> None:
    right = exact(some(13))[0]
    out = right.copy()
    out[0, 0, 3, 4] = math.nan
    assert math.isnan(errors(out, right, None)[0, 0])
    assert errors(out, right, None)[0, 1] == 0


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("attn", ["softmax", "eager"])
def test_softmax_s_own_error_is_rounding(attn: str, mask: np.ndarray | None) -> None:
    qkv = some(13, mask, instances=2)
    given = Given(qkv, *exact(qkv), "float32")
    found = work(Choice(attn, "", 0, (), 1.0, True), given, torch.device("cpu")).facts()["errors"]
    assert found.max() < 1e-6


def test_in_bfloat16_the_error_is_to_the_exact_output_of_the_rounded_inputs() -> None:
    qkv = some(64)
    coarse = rounded(qkv, "bfloat16")
    choice = Choice("softmax", "", 0, (), 1.0, True)
    found = [
        work(choice, Given(qkv, *exact(of), "bfloat16"), torch.device("cpu")).facts()["errors"].mean()
        for of in (coarse, qkv)
    ]
    assert rounded(qkv, "float32") is qkv
    # What the output and its weights are rounded by, without what rounding q and k does to the weights.
    assert 1e-4 < found[0] < min(2**-8, 0.75 * found[1])


def test_a_step_gives_the_gradients_of_q_k_v_and_of_the_variant_s_own_weights() -> None:
    qkv = some(64)
    given = Given(qkv, *exact(qkv), "float32")
    step = work(sweep("linformer", 64)[0], given, torch.device("cpu")).step()
    assert [tuple(x.shape) for x in step if x is not None] == [qkv.q.shape] * 3 + [(2, 16, 64)]
    # Reformer's keys are its queries.
    assert [x is None for x in work(sweep("reformer", 64)[0], given, torch.device("cpu")).step()] == [0, 1, 0]


def test_projections_are_four_products_of_all_channels() -> None:
    qkv = some(64, instances=2)
    made = work(Choice("projections", "", 0, (), 1.0, True), Given(qkv, *exact(qkv), "float32"), torch.device("cpu"))
    assert [tuple(x.shape) for x in made.forward()] == [(2, 64, 16)] * 3
    # Of the input, of four matrices and of four biases.
    assert [x.numel() for x in made.step() if x is not None] == [2048, *(256, 16) * 4]


def test_what_is_run_before_memory_is_measured_is_one_short_instance() -> None:
    qkv = some(100, np.ones((3, 100), dtype=bool), instances=3)
    small = Given(qkv, *exact(qkv), "float32").cut()
    assert small.qkv.q.shape == small.exact.shape == (1, 2, 64, 8)
    assert small.qkv.mask is not None
    assert small.qkv.mask.shape == (1, 64)


class Inline:
    """Measures in this process, as a contest does in others; `fails` are the results of entrants that do not run."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.fails: dict[str, str] = {}
        self.stops_at: str | None = None

    def __call__(self, entrants: Sequence[Entrant], rules: Rules, *_: Any) -> dict[str, Taken]:
        # They must reach a process of their own.
        entrants = pickle.loads(pickle.dumps(entrants))
        self.asked.append([entrant.name for entrant in entrants])
        found = {}
        for number, entrant in enumerate(entrants):
            if entrant.name == self.stops_at:
                raise KeyboardInterrupt
            if entrant.name in self.fails:
                found[entrant.name] = Taken(self.fails[entrant.name], {}, {}, None, "", "", {})
                continue
            entrant.small(torch.device("cpu")).parts[rules.part]()
            made = entrant.build(torch.device("cpu"))
            for call in made.parts.values():
                call()
            times = {part: [number + 1.0 + 3 * turn for turn in range(rules.rounds)] for part in made.parts}
            found[entrant.name] = Taken("ok", times, dict.fromkeys(times, 0.5), 3.0, "float32", "", made.facts())
        return found


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Inline:
    made = Inline()
    monkeypatch.setattr(approximation, "contest", made)
    return made


def go(folder: Path, *words: str) -> int:
    return main([f"folder={folder}", "lengths=64", "rounds=3", "threads=1", *words])


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_a_row_says_what_it_cost_and_how_far_its_heads_are(inline: Inline, tmp_path: Path) -> None:
    assert go(tmp_path, "attn=performer") == 0
    rows, heads = read(tmp_path / MAIN), read(tmp_path / HEADS)
    assert tuple(rows[0]) == Row._fields
    assert tuple(heads[0]) == HeadRow._fields
    assert [(row["attn"], row["parameter"], row["value"]) for row in rows] == [
        ("softmax", "", ""), ("eager", "", ""), ("projections", "", ""), ("performer", "features", "16")
    ]  # fmt: skip
    softmax, eager, projections, performer = rows
    for row in (softmax, eager, performer):
        own = [float(head["error"]) for head in heads if head["attn"] == row["attn"]]
        assert len(own) == 2
        assert_close(float(row["error"]), sum(own) / 2, rtol=1e-5, atol=0)
        assert float(row["error_low"]) <= float(row["error_median"]) <= float(row["error_high"])
    assert float(softmax["error"]) < 1e-6 < float(performer["error"])
    assert projections["error"] == projections["workload"] == projections["aims"] == ""
    # Third in turn behind softmax and eager: 3, 6, 9 to 1, 4, 7 and 2, 5, 8.
    assert (performer["ratio"], performer["ratio_eager"]) == ("1.5", "1.2")
    assert (performer["step_ms"], performer["step_iqr_ms"], performer["samples_ms"]) == ("6", "3", "3 6 9")
    assert (performer["first_s"], performer["rounds"], performer["peak_mb"]) == ("1", "3", "3")
    assert (performer["workload"], performer["aims"], performer["kernel"]) == ("0.25", "True", "reference")


def test_times_and_memory_are_of_one_instance_and_padding_is_no_error(inline: Inline, tmp_path: Path) -> None:
    qkv = some(48, instances=3)
    mask = np.arange(48) < 40
    np.savez(tmp_path / "own.npz", q=qkv.q, k=qkv.k, v=qkv.v, mask=mask)
    assert go(tmp_path, "attn=adamra", f"inputs={tmp_path / 'own.npz'}") == 0
    rows = read(tmp_path / MAIN)
    assert {(row["inputs"], row["n"], row["batch"]) for row in rows} == {("own", "48", "3")}
    assert (rows[-1]["step_ms"], rows[-1]["peak_mb"]) == ("2", "1")
    assert float(rows[0]["error"]) < 1e-6
    assert len(read(tmp_path / HEADS)) == 3 * 2 * 3


def test_a_second_start_measures_only_what_is_missing(
    inline: Inline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(tmp_path, "attn=performer") == 0
    kept = (tmp_path / MAIN).read_text()
    assert len(inline.asked) == 2
    assert go(tmp_path, "attn=performer,adamra") == 0
    assert inline.asked[2:] == [["softmax", "eager", "adamra"]]
    assert (tmp_path / MAIN).read_text().startswith(kept)
    assert go(tmp_path, "attn=performer,adamra") == 0
    assert len(inline.asked) == 3
    assert "3 of 3 units are measured" in capsys.readouterr().out


def test_ctrl_c_keeps_whole_units_and_says_so_in_one_line(
    inline: Inline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inline.stops_at = "adamra"
    assert go(tmp_path, "attn=performer,adamra") == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert [row["attn"] for row in read(tmp_path / MAIN)] == ["softmax", "eager", "projections", "performer"]


def test_a_full_disk_leaves_no_row_without_its_heads(
    inline: Inline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(file: str, *rest: Any) -> None:
        if file.endswith(MAIN):
            raise OSError(errno.ENOSPC, "No space left on device", file)
        save_rows(file, *rest)

    with monkeypatch.context() as full:
        full.setattr(ledger, "save_rows", save)
        assert go(tmp_path, "attn=performer") == 1
    assert capsys.readouterr().err == f"error: [Errno 28] No space left on device: '{tmp_path / MAIN}'\n"
    assert not (tmp_path / MAIN).exists()
    assert go(tmp_path, "attn=performer") == 0
    assert [len(read(tmp_path / name)) for name in (MAIN, HEADS)] == [4, 6]


def test_what_does_not_run_is_a_row(inline: Inline, tmp_path: Path) -> None:
    inline.fails = {"eager": OUT_OF_MEMORY, "performer features=16": "does not run: SIGSEGV"}
    assert go(tmp_path, "attn=performer,adamra") == 0
    rows = {row["attn"]: row for row in read(tmp_path / MAIN)}
    assert rows["eager"]["result"] == OUT_OF_MEMORY
    assert rows["performer"]["result"] == "does not run: SIGSEGV"
    assert rows["performer"]["error"] == rows["performer"]["step_ms"] == rows["adamra"]["ratio_eager"] == ""
    assert rows["adamra"]["ratio"] == "1.5"


def test_rows_of_another_source_are_replaced_with_a_line(
    inline: Inline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(tmp_path, "attn=adamra") == 0
    monkeypatch.setattr(approximation, "MODULES", ("sweeps",))
    capsys.readouterr()
    assert go(tmp_path, "attn=adamra") == 0
    assert f"4 rows of another source or machine in {tmp_path / MAIN} are replaced" in capsys.readouterr().out
    assert len(inline.asked) == 4
    assert len(read(tmp_path / MAIN)) == 4


def test_two_at_once_do_not_share_a_folder(inline: Inline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ledger.alone(tmp_path):
        assert go(tmp_path) == 1
    assert capsys.readouterr().err == (
        f"error: another study measures into {tmp_path}; start this one when it has ended\n"
    )
    assert inline.asked == []


def test_a_plan_measures_and_writes_nothing(inline: Inline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path / "none", "dry=true") == 0
    told = capsys.readouterr().out
    assert "0 of 15 units are measured" in told
    assert "generated, n 64, mra2; about" in told
    assert inline.asked == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("attn=mra3", "attn=mra3 is not one of mra2, "),
        ("attn=softmax", "attn=softmax is not one of mra2, "),
        ("size=tiny", "size=tiny is not one of small, full"),
        ("lengths=0", "lengths=0 must be an integer of at least 1"),
        ("rounds=few", "rounds=few must be an integer of at least 1"),
        ("dtype=float64", "dtype=float64 is not one of float32, bfloat16, float16"),
        ("dry=yes", "dry=yes is not one of true, false"),
        ("inputs=generatd", "inputs 'generatd' are not"),
        ("inputs=none.npz", "inputs none.npz: there is no such file"),
        ("input=generated", "unknown key 'input'"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(
    word: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(tmp_path / "none", word) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {answer}")
    assert said.count("\n") == 1
    assert not (tmp_path / "none").exists()
