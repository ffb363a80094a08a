"""The laws of `make bench study=efficiency`: exact attentions, crossings, words, rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from attention_zoo import ZOO
from benchmarks.studies import efficiency
from benchmarks.studies.baselines import EXACT, Sdpa, on
from benchmarks.studies.contest import OK, Rules, Taken
from benchmarks.studies.costs import Unit, line, rows_of
from benchmarks.studies.crossing import CROSSOVER, EFFICIENCY, crossings, derive, words
from benchmarks.studies.efficiency import asked, entered, expected, main
from benchmarks.studies.ledger import Stamp
from benchmarks.studies.ledger import rows_of as read
from benchmarks.studies.measured import KINDS

STAMP = Stamp("a CPU", 1, "", "", "", "3.11", "2.13", "0123456789ab", "")
# FlexAttention compiles for seconds; the rows of a study say whether it runs.
QUICK = [name for name in on("cpu") if name != "flex"]


def dense(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Softmax attention over the real tokens, one query at a time; 0 at padded places."""
    out = torch.zeros_like(v)
    for b in range(len(q)):
        real = mask[b].nonzero()[:, 0].tolist()
        for h in range(q.shape[1]):
            for i in real:
                logits = torch.stack([q[b, h, i] @ k[b, h, j] for j in real]) / math.sqrt(q.shape[-1])
                weights = (logits - logits.max()).exp()
                out[b, h, i] = (weights[:, None] * v[b, h, real]).sum(0) / weights.sum()
    return out


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_exact_attention_is_softmax_attention_over_the_real_tokens(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 5, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    # The last example has no real token at all.
    mask = torch.tensor([[True] * 5, [True, False, True, True, False], [False] * 5])
    core = EXACT[name](2, 8, 5)
    own, its = core(q, k, v, mask), dense(q, k, v, mask)
    assert_close(own, its)
    upstream = torch.randn_like(own)
    assert_close(torch.autograd.grad(own, (q, k, v), upstream), torch.autograd.grad(its, (q, k, v), upstream))
    assert_close(core(q, k, v), core(q, k, v, torch.ones(3, 5, dtype=torch.bool)))


def test_the_exact_attentions_have_the_names_of_the_rows() -> None:
    assert tuple(EXACT) == efficiency.EXACT[1:]
    assert on("cpu") == ["eager", "sdpa flash", "sdpa math", "flex"]
    assert on("cuda") == list(EXACT)


def test_a_backend_that_cannot_run_says_so_and_no_other_takes_its_place() -> None:
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(RuntimeError, match="No viable backend"):
        EXACT["sdpa efficient"](1, 8, 4)(q, q, q)


def test_a_mask_is_asked_for_padding_once_and_again_when_it_changes() -> None:
    core, mask = Sdpa(1, 8, 4, backend="FLASH_ATTENTION"), torch.ones(2, 4, dtype=torch.bool)
    assert not core.pads(mask)
    core.padded = True
    assert core.pads(mask)
    mask[0, 3] = False
    core.padded = False
    assert core.pads(mask)
    assert not core.pads(torch.ones(2, 4, dtype=torch.bool))


def row(attn: str, n: int, ms: float | None, mib: float | None, **others: str) -> dict[str, str]:
    known = {
        "of": "core", "attn": attn, "kind": "variant", "dtype": "float32", "rule": "2", "batch": "2", "n": str(n),
        "result": OK, "step_ms": "" if ms is None else str(ms), "peak_mb": "" if mib is None else str(mib),
        "samples_ms": "", "device": "a CPU", "torch": "2.13", "source": "0123456789ab", "date": "now",
    }  # fmt: skip
    return known | others


def against(times: list[float | None], exact: list[float | None], why: str = "out of memory") -> Any:
    """The crossing in time of a variant and of eager softmax, at 512, 1024, ..."""
    rows = []
    for i, (mine, its) in enumerate(zip(times, exact, strict=True)):
        rows.append(row("eager", 512 << i, its, 1, kind="exact", result=OK if its else why))
        rows.append(row("one", 512 << i, mine, 1, result=OK if mine else why))
    found = [each for each in crossings(rows) if (each.measure, each.rival) == ("time", "best")]
    return found[0] if found else None


@pytest.mark.parametrize(
    ("times", "exact", "length", "ahead_from", "behind_at", "before", "told"),
    [
        # Ratios 2 and 1/2: the middle of 512 and 1,024 in log-log.
        ([2, 1], [1, 2], 512 * 2**0.5, 1024, 512, [], "724"),
        # Ratios 4 and 1/2: two thirds of the way.
        ([4, 1], [1, 2], 512 * 2 ** (2 / 3), 1024, 512, [], "813"),
        ([1, 1, 1], [2, 2, 2], None, 512, None, [], "always, from 512"),
        ([3, 3, 3], [2, 2, 2], None, None, 2048, [], "never up to 2,048"),
        # As fast is not ahead.
        ([1, 1], [1, 1], None, None, 1024, [], "never up to 1,024"),
        ([1, 1], [1, 2], 512, 1024, 512, [], "512"),
        # Ahead, behind, ahead again: it counts from the last crossing.
        ([1, 4, 1], [2, 2, 4], 1024 * 2 ** (1 / 3), 2048, 1024, [512], "1,290 (and at 512)"),
        ([1, 1, 4], [2, 2, 2], None, None, 2048, [512, 1024], "never up to 2,048 (and at 512 1,024)"),
        # The other one does not fit: ahead, though nobody knows from where in between.
        ([2, 2], [1, None], None, 1024, 512, [], "from 1,024"),
        ([1, None], [2, 4], None, None, 1024, [512], "never up to 1,024 (and at 512)"),
    ],
)
def test_a_crossing_is_told_as_it_is(
    times: list[float | None], exact: list[float | None], length: float | None, ahead_from: int | None,
    behind_at: int | None, before: list[int], told: str,
) -> None:  # fmt: skip
    found = against(times, exact)
    assert (found.ahead_from, found.behind_at, found.ahead_before) == (ahead_from, behind_at, before)
    assert found.length == (None if length is None else pytest.approx(length))
    assert found.longest == 512 << len(times) - 1
    assert words(found) == told


def test_what_was_not_measured_is_no_answer() -> None:
    assert against([1, 2], [None, None], why="does not run") is None
    # A variant that does not run at a length, for another reason than memory, is not compared there.
    assert against([1, None], [2, 2], why="does not run").longest == 512


def test_the_rival_is_the_best_exact_one_at_each_length_and_eager_beside_it() -> None:
    exact = [row("eager", 512, 1, 3, kind="exact"), row("eager", 1024, 9, 9, kind="exact")]
    exact += [row("softmax", 512, 2, 2, kind="exact"), row("softmax", 1024, 4, 2, kind="exact")]
    found = crossings([*exact, row("one", 512, 1.5, 4), row("one", 1024, 3, 1)])
    told = {(each.measure, each.rival): (each.against, each.ahead_from, each.behind_at) for each in found}
    assert told == {
        ("time", "best"): ("softmax", 1024, 512),
        ("time", "eager"): ("eager", 1024, 512),
        ("memory", "best"): ("softmax", 1024, 512),
        ("memory", "eager"): ("eager", 1024, 512),
    }


def test_times_of_one_race_are_compared_round_by_round_and_batches_for_one_example() -> None:
    # Medians say 2 to 3, the rounds 2 to 1: the machine was slow in one of them.
    rows = [
        row("eager", 512, 3, 1, kind="exact", samples_ms="1 3 9"),
        row("one", 512, 2, 1, samples_ms="2 6 1"),
        row("two", 512, 2, 1, samples_ms="2 6 1", date="before"),
        row("large", 512, 4, 1, batch="8"),
    ]
    ahead = {each.attn: each.ahead_from for each in crossings(rows) if (each.measure, each.rival) == ("time", "best")}
    assert ahead == {"one": None, "two": 512, "large": 512}


def test_rows_say_what_ran_and_ratios_are_for_one_example() -> None:
    def taken(step: list[float], peak: float) -> Taken:
        return Taken(OK, {"forward": [1.0], "step": step}, {"step": 0.5}, peak, "float32", "", {"kernel": "cpu"})

    none = Taken("step: out of memory", {"forward": [1.0]}, {}, None, "", "", {}, {"step": "out of memory"})
    found = {"softmax": (2, taken([2, 2, 8], 4)), "eager": (2, none), "mra2": (4, taken([2, 2, 4], 2))}
    fused, eager, mra2 = rows_of(Unit("core", "float32", "max", 512), found, STAMP)
    assert (fused.kind, eager.kind, mra2.kind) == ("exact", "exact", "variant")
    assert (mra2.ratio, mra2.ratio_eager, mra2.memory_ratio) == (0.5, None, 0.25)
    assert (mra2.steps_per_s, mra2.rounds, mra2.samples_ms) == (500, 3, [2, 2, 4])
    assert (eager.forward_ms, eager.step_ms, eager.ratio) == (1.0, None, None)
    assert line(eager).endswith("step: out of memory")


@pytest.mark.parametrize("of", list(KINDS))
@pytest.mark.parametrize("name", ["eager", "reformer"])
def test_a_step_leaves_nothing_and_only_training_changes_weights(of: str, name: str) -> None:
    work: Any = KINDS[of](name, 64, 2, "bfloat16", torch.device("cpu"))
    module = work.model if of == "model" else work.core
    before = {key: value.clone() for key, value in module.state_dict().items()}
    work.parts["forward"]()
    assert not module.training
    work.parts["step"]()
    assert module.training
    assert_close(dict(module.state_dict()), before)
    assert all(weight.grad is None for weight in module.parameters())
    if of == "model":
        work.parts["train"]()
        assert not torch.equal(module.head[0].weight, before["head.0.weight"])
        assert all(weight.grad is None for weight in module.parameters())
        assert module.head[0].weight.dtype == torch.float32


def test_every_configured_attention_runs_in_the_model_at_the_size_of_the_first_call() -> None:
    n, batch = efficiency.FIRST
    names = entered(
        "model", asked({key: default for key, (default, _) in efficiency.KEYS.items()}).names["model"], "cpu"
    )
    assert set(names) >= ZOO.keys() | {"soft_conv", "nystromformer_conv", "yoso_conv", "eager", "sdpa math"}
    for name in names:
        assert KINDS["model"](name, n, batch, "float32", torch.device("cpu")).parts["forward"]().isfinite().all()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("size=medium", "size=medium is not one of small, full"),
        ("of=layer", "of=layer is not one of core, model"),
        ("attn=mra3", "attn=mra3 is not one of"),
        ("lengths=1k", "lengths=1k must be an integer of at least 1"),
        ("batch=half", "batch=half is not a number of examples, max, or <T>tokens such as 32768tokens"),
        ("batch=0", "batch=0 is not a number of examples"),
        ("batch=600tokens", "batch=600tokens is less than one document of n=1024 tokens"),
        ("dtype=float16", "dtype=float16 is not one of float32, bfloat16"),
        ("rounds=0", "rounds=0 must be an integer of at least 1"),
        ("threads=-1", "threads=-1 must be an integer of at least 0"),
        ("dry=yes", "dry=yes is not one of true, false"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(word: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {told}")
    assert said.count("\n") == 1


def test_a_batch_is_a_number_of_tokens_or_what_fits() -> None:
    units = [Unit("core", "float32", rule, 1024) for rule in ("3", "4096tokens", "max")]
    assert [unit.batch for unit in units] == [3, 4, None]


def taken_at_once(unit: Unit, names: list[str], rules: Rules, tell: Any) -> dict[str, tuple[int, Taken]]:
    part = rules.part
    return {
        name: (2, Taken(OK, {part: [i + 1.0, i + 1.0, i + 2.0]}, {}, i + 1.0, "float32", "", {}))
        for i, name in enumerate(names)
    }


def test_a_second_start_goes_on_and_the_crossings_come_from_the_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    seen: list[Unit | None] = []

    def once(unit: Unit, *others: Any) -> Any:
        if len(seen) == 1:
            seen.append(None)
            raise KeyboardInterrupt
        seen.append(unit)
        return taken_at_once(unit, *others)

    monkeypatch.setattr(efficiency, "measured", once)
    given = [f"folder={tmp_path}", "lengths=64,128", "of=core", "attn=mra2", f"threads={threads}"]
    assert main(given) == 130
    assert "interrupted: " in capsys.readouterr().err
    rows = read(tmp_path / EFFICIENCY)
    assert [(line["attn"], line["n"]) for line in rows] == [("softmax", "64"), ("eager", "64"), ("mra2", "64")]
    assert main(given) == 0
    told = capsys.readouterr().out
    assert "1 of 2 are measured already" in told
    assert "never up to 128" in told
    written = (tmp_path / CROSSOVER).read_text()
    (tmp_path / CROSSOVER).unlink()
    assert len(derive(tmp_path)) == 4
    assert (tmp_path / CROSSOVER).read_text() == written
    assert main([*given, "dry=true"]) == 0
    assert "0 of 2 are left" in capsys.readouterr().out


def test_the_small_study_is_expected_to_take_minutes() -> None:
    wish = asked({key: default for key, (default, _) in efficiency.KEYS.items()} | {"device": "cpu"})
    assert 60 < sum(expected(unit, wish) for unit in wish.units) < 600
