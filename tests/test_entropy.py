"""The study of entropy: what enters under a budget of time, at which temperatures, and the file that it leaves."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.studies import approximation, entropy
from benchmarks.studies.apart import OK, OUT_OF_MEMORY
from benchmarks.studies.budgets import Budget, Timed, enter
from benchmarks.studies.inputs import QKV, Size, take
from benchmarks.studies.ledger import Ledger, rows_of, stamp
from benchmarks.studies.sweeps import Choice, sweep
from benchmarks.studies.temperatures import NINE, gaps_of, heat, temperatures

N = 48
WORDS = ["threads=1", f"lengths={N}", "temperatures=1/4,1,4"]
# By attention, parameter and value: the step as a share of eager softmax's, and the error at temperature 1.
TIMES = {
    ("mra2", "blocks_per_row", 1): (0.4, 0.2),
    ("longformer", "window", 2): (0.45, 0.3),
    ("longformer", "window", 4): (0.5, 0.2),
    ("longformer", "window", 8): (0.8, 0.25),
    ("nystromformer", "landmarks", 8): (1.5, 0.1),
}


def timed(value: int, ratio: float, error: float = 0.5, workload: float | None = None) -> Timed:
    choice = Choice(
        "longformer", "window", value, (("window", value),), value / 64 if workload is None else workload, True
    )
    return Timed(choice, 100 * ratio, {"eager": ratio}, error)


def entered(share: float, *every: Timed) -> tuple[int | None, int | None]:
    """The values of the configuration that enters and of the nearest one."""
    entry = enter(Budget("eager", share, 100 * share), "longformer", every)
    return tuple(each and each.choice.value for each in (entry.taken, entry.nearest))  # type: ignore[return-value]


def test_the_largest_workload_within_the_budget_enters() -> None:
    every = timed(16, 0.2, 0.4), timed(32, 0.5, 0.3), timed(64, 0.6, 0.2)
    assert entered(1, *every) == (64, 64)
    assert entered(0.5, *every) == (32, 32)
    assert entered(0.1, *every) == (None, None)


def test_of_equal_workloads_the_quicker_enters() -> None:
    assert entered(1, timed(16, 0.9, workload=0.5), timed(32, 0.3, workload=0.5))[0] == 32


def test_the_nearest_is_told_apart_from_the_largest() -> None:
    assert entered(1, timed(16, 0.2, 0.1), timed(32, 0.5, 0.3), timed(64, 2, 0.01)) == (32, 16)


def test_a_time_is_compared_within_its_own_rounds() -> None:
    # 90 ms while eager softmax took 120 are within its budget, whatever it took at another time.
    assert entered(0.75, timed(16, 0.2), timed(32, 0.5)._replace(ms=90.0, ratios={"eager": 0.75}))[0] == 32
    assert entered(1, timed(16, 0.2)._replace(ratios={})) == (None, None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the approximation study has run; what would be processes are calls."""
    write_times(tmp_path, inputs())
    monkeypatch.setattr(entropy, "swept", lambda: ["mra2", "longformer", "nystromformer"])
    monkeypatch.setattr(entropy, "sweep", swept)
    monkeypatch.setattr(entropy, "apart", called)
    return tmp_path


def called(work: Callable[..., Any], device: str, *given: Any) -> tuple[Any, None, str]:
    """As in a process of its own, to which everything goes by way of pickle."""
    return work(None, *pickle.loads(pickle.dumps(given))), None, OK


def inputs() -> QKV:
    extent = approximation.SIZES["small"]
    return take("generated", Size(N, extent.heads, extent.head_dim, extent.instances))


def swept(attn: str, n: int) -> list[Choice]:
    fixed = {
        name: dict(each.keywords) for name in ("mra2", "longformer", "nystromformer") for each in sweep(name, n)[:1]
    }
    return [
        Choice(name, parameter, value, tuple((fixed[name] | {parameter: value}).items()), value / n, True)
        for name, parameter, value in TIMES
        if name == attn
    ]


def write_times(folder: Path, qkv: QKV, times: dict[tuple[str, str, int], tuple[float, float]] = TIMES) -> None:
    """approximation.csv, as if it had been measured on this machine."""
    machine = stamp("cpu", 1, approximation.MODULES)
    blank = dict.fromkeys(approximation.Row._fields)
    named = {
        "inputs": qkv.name,
        "inputs_sha256": qkv.sha256[:12],
        "n": qkv.q.shape[2],
        "dtype": "float32",
        "result": OK,
    }
    blank |= named | machine._asdict()
    exact = [blank | {"attn": name, "parameter": "", "step_ms": 10.0} for name in ("softmax", "eager")]
    others: list[dict[str, Any]] = [
        blank
        | {"attn": attn, "parameter": parameter, "value": value, "step_ms": 10 * ratio, "ratio_eager": ratio}
        | {"ratio": 2 * ratio, "error": error}
        for (attn, parameter, value), (ratio, error) in times.items()
    ]
    ledger = Ledger(folder / approximation.MAIN, approximation.Row, approximation.IDENTITY, machine)
    ledger.add(approximation.Row(**row) for row in exact + others)


def go(folder: Path, *words: str) -> list[dict[str, str]]:
    assert entropy.main([*WORDS, f"folder={folder}", *words]) == 0
    return rows_of(folder / entropy.MAIN)


def without_dates(rows: list[dict[str, str]]) -> set[tuple[str, ...]]:
    return {tuple(value for key, value in row.items() if key != "date") for row in rows}


def test_every_entry_has_every_head_at_every_temperature_and_all_see_the_same_points(place: Path) -> None:
    rows = go(place)
    assert tuple(rows[0]) == entropy.Row._fields
    found: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        found.setdefault((row["against"], row["budget"]), {}).setdefault(row["attn"], []).append(row)
    values = {key: {attn: its[0]["value"] for attn, its in each.items()} for key, each in found.items()}
    assert values == {
        ("eager", "1"): {"mra2": "1", "longformer": "8", "nystromformer": ""},
        ("eager", "0.5"): {"mra2": "1", "longformer": "4", "nystromformer": ""},
        ("softmax", "1"): {"mra2": "1", "longformer": "4", "nystromformer": ""},
        ("softmax", "0.5"): {"mra2": "", "longformer": "", "nystromformer": ""},
    }
    points = {
        tuple((row["temperature"], row["instance"], row["head"], row["entropy"]) for row in its)
        for each in found.values()
        for its in each.values()
        if its[0]["result"] == OK
    }
    (only,) = points
    assert [point[:3] for point in only] == [(s, "instance 0", h) for s in ("0.25", "1", "4") for h in "01"]
    none = [row for row in rows if row["result"] != OK]
    assert {row["result"] for row in none} == {"none within the budget"}
    assert len(none) == 6
    assert {row["budget_ms"] for row in rows} == {"10", "5"}


def test_errors_and_entropies_are_those_of_the_heated_logits(place: Path) -> None:
    rows = go(place, "attn=longformer", "against=eager", "budget=1")
    qkv, choice = inputs(), swept("longformer", N)[-1]
    q, k, v = (torch.from_numpy(x) for x in qkv[1:4])
    for row in rows:
        s, h = float(row["temperature"]), int(row["head"])
        weights = (s * q.double() @ k.double().mT / 8).softmax(-1)
        out = weights @ v.double()
        from attention_zoo import ZOO

        own = ZOO["longformer"](2, 64, N, **dict(choice.keywords))(q * s**0.5, k * s**0.5, v).double()
        error = (torch.linalg.norm(own[0, h] - out[0, h]) / torch.linalg.norm(out[0, h])).item()
        assert float(row["error"]) == pytest.approx(error, rel=1e-4)
        nats = -(weights * weights.clamp_min(1e-300).log()).sum(-1).mean(-1)[0, h].item()
        assert float(row["entropy"]) == pytest.approx(nats, rel=1e-5)


def counting(monkeypatch: pytest.MonkeyPatch, last: int = 99, result: str = OK) -> list[tuple[str, int, list[float]]]:
    """Note what is computed; from the computation number `last` on Ctrl-C, or another result."""
    seen: list[tuple[str, int, list[float]]] = []

    def count(work: Callable[..., Any], device: str, choice: Choice, qkv: QKV, exacts: Any, *given: Any) -> Any:
        if len(seen) == last:
            if result == OK:
                raise KeyboardInterrupt
            return None, None, result
        seen.append((choice.attn, choice.value, list(exacts)))
        return work(None, choice, qkv, exacts, *given), None, OK

    monkeypatch.setattr(entropy, "apart", count)
    return seen


def test_a_configuration_under_several_budgets_is_computed_once_and_a_second_start_computes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, three = counting(monkeypatch), [0.25, 1.0, 4.0]
    first = go(place)
    assert seen == [("mra2", 1, three), ("longformer", 8, three), ("longformer", 4, three)]
    assert without_dates(go(place)) == without_dates(first)
    assert len(seen) == 3


def test_a_start_after_one_that_was_cut_off_goes_on_and_ends_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = counting(monkeypatch, last=1)
    assert entropy.main([*WORDS, f"folder={place}"]) == 130
    assert capsys.readouterr().err.startswith("interrupted: what is computed is written")
    kept = rows_of(place / entropy.MAIN)
    assert {row["attn"] for row in kept if row["result"] == OK} == {"mra2"}
    seen = counting(monkeypatch)
    after = go(place)
    assert [each[:2] for each in seen] == [("longformer", 8), ("longformer", 4)]
    (place / entropy.MAIN).unlink()
    assert without_dates(go(place)) == without_dates(after)


def test_a_further_temperature_is_added_to_those_that_are_known(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "attn=mra2", "against=eager", "budget=1"
    before, seen = go(place, *words), counting(monkeypatch)
    after = go(place, *words, "temperatures=1,2")
    assert seen == [("mra2", 1, [2.0])]
    assert without_dates(before) < without_dates(after)
    assert {row["temperature"] for row in after} == {"0.25", "1", "2", "4"}


def test_new_times_replace_what_enters(place: Path) -> None:
    go(place)
    write_times(place, inputs(), TIMES | {("longformer", "window", 8): (1.1, 0.25)})
    rows = go(place)
    values = {
        row["value"] for row in rows if (row["attn"], row["against"], row["budget"]) == ("longformer", "eager", "1")
    }
    assert values == {"4"}


def test_out_of_memory_is_a_result_that_the_next_start_tries_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "against=eager", "budget=1"
    counting(monkeypatch, last=1, result=OUT_OF_MEMORY)
    rows = [row for row in go(place, *words) if row["attn"] == "longformer"]
    assert [(row["value"], row["result"], row["error"]) for row in rows] == [("8", "out of memory", "")]
    assert "window=8, 8 ms, 0.80 x: out of memory" in capsys.readouterr().out
    counting(monkeypatch)
    assert {row["result"] for row in go(place, *words) if row["attn"] == "longformer"} == {OK}


def test_missing_times_are_measured_first_of_exactly_these_inputs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / approximation.MAIN).unlink()
    asked: list[dict[str, str]] = []

    def measure(options: dict[str, str]) -> int:
        asked.append(options)
        write_times(place, inputs())
        return 0

    monkeypatch.setattr(approximation, "run", measure)
    go(place, "rounds=7")
    go(place)
    (once,) = asked
    assert once.keys() == approximation.KEYS.keys()
    expected = {"inputs": "generated", "lengths": "48", "attn": "mra2,longformer,nystromformer", "rounds": "7"}
    assert expected.items() <= once.items()
    assert "the approximation study goes first" in capsys.readouterr().out


def test_times_of_another_source_are_not_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place / approximation.MAIN
    file.write_text(file.read_text().replace(rows_of(file)[0]["source"], "0123456789ab"))
    monkeypatch.setattr(approximation, "run", lambda options: write_times(place, inputs()))
    assert {row["result"] for row in go(place, "attn=mra2", "budget=1")} == {OK}
    assert "0123456789ab" not in file.read_text()


def test_a_plan_computes_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entropy.main([*WORDS, f"folder={place}", "dry=true"]) == 0
    assert [file.name for file in place.iterdir()] == [approximation.MAIN]
    assert "3 configurations, 3 left: about" in capsys.readouterr().out


def test_the_table_says_what_enters_what_does_not_and_where_the_largest_is_not_the_nearest(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(place, "against=eager", "budget=1")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    (own,) = (line for line in lines if line.startswith("longformer") and "window" in line)
    assert own.startswith("longformer       window=8, 8 ms, 0.80 x")
    assert own.endswith("window=4 is nearer at temperature 1, 0.2 against 0.25")
    assert "nystromformer    none within the budget: landmarks=8 takes 1.50 x eager" in lines


def test_only_real_tokens_of_a_file_count(place: Path) -> None:
    drawn = np.random.default_rng(0).normal(size=(3, 2, 2, N, 16)).astype("float32")
    lengths = [30, 48]
    mask = np.arange(N) < np.array(lengths)[:, None]
    spoilt = np.where(mask[:, None, :, None], drawn, 1e3)
    file = place / "own.npz"
    np.savez(file, q=spoilt[0], k=spoilt[1], v=spoilt[2], mask=mask)
    qkv = take(str(file), Size(1, 1, 1, 1))
    write_times(place, qkv)
    rows = go(place, f"inputs={file}", "attn=mra2", "against=eager", "budget=1", "temperatures=1/16")
    assert [(row["instance"], row["head"]) for row in rows] == [(i, h) for i in "01" for h in "01"]
    for row in rows:
        assert float(row["entropy"]) == pytest.approx(math.log(lengths[int(row["instance"])]), abs=0.01)
        assert float(row["error"]) < 0.2


def test_temperatures_are_put_between_until_no_gap_is_left() -> None:
    def alike(s: float) -> np.ndarray:
        """Heads of one entropy, which falls steeply near temperature 1."""
        return np.array([[8.3 / (1 + s**3), 8.2 / (1 + s**3)]])

    used, found = heat(alike, 4096, None)
    assert set(NINE) < set(used)
    assert used == sorted(used)
    assert gaps_of({s: alike(s) for s in NINE}, 4096) != []
    assert gaps_of(found, 4096) == []
    assert heat(alike, 4096, [2.0, 1.0])[0] == [1, 2]


def test_a_range_that_no_temperature_reaches_ends_the_search() -> None:
    used, found = heat(lambda s: np.array([[2.0]]), 4096, None)
    assert used == list(NINE)
    assert len(gaps_of(found, 4096)) == 2


def test_temperatures_are_numbers_or_fractions_each_once() -> None:
    assert temperatures("1/16,0.0625,2,1e1") == [0.0625, 2, 10]


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("temperatures=0", "error: temperatures=0 must be a number from 1e-6 to 1e6"),
        ("temperatures=1,-1", "error: temperatures=-1 must be"),
        ("temperatures=x", "error: temperatures=x must be"),
        ("temperatures=1/0", "error: temperatures=1/0 must be"),
        ("temperatures=nan", "error: temperatures=nan must be"),
        ("budget=0", "error: budget=0 must be numbers above 0"),
        ("budget=half", "error: budget=half must be"),
        ("against=sotfmax", "error: against=sotfmax is not one of eager, softmax; did you mean 'softmax'?"),
        ("attn=longfomer", "error: attn=longfomer is not one of"),
        ("lengths=0", "error: lengths=0 must be an integer of at least 1"),
        ("inputs=none.npz", "error: inputs none.npz: there is no such file"),
        ("size=tiny", "error: size=tiny is not one of small, full"),
        ("rounds=0", "error: rounds=0 must be an integer of at least 1"),
        ("dry=yes", "error: dry=yes is not one of true, false"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(word: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entropy.main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(answer)
    assert said.count("\n") == 1
