"""The benchmark of the kernel: what it counts, what it writes, what it does where something does not run."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_zoo.mra2 import MRA2
from benchmarks import counted
from benchmarks.contenders import BACKENDS, BLOCK_SIZE, BLOCKS_PER_ROW, Setting, names
from benchmarks.kernel import Asked, Row, bars, go, main, plan
from benchmarks.meter import Meter
from benchmarks.speed import high_water
from benchmarks.tables import kernel, kernel_cuda
from benchmarks.taken import Wish, take

from . import forks

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def found(file: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    return {(row["work"], row["part"], row["mode"]): row for row in read(file)}


class InProcess(Meter):
    """A CPU whose memory is looked at in this process: too little where memory is used again, and fast."""

    in_fresh_process = False

    def peak(self, work: Callable[[], object]) -> float:
        before = high_water()
        work()
        return (high_water() - before) / 2**10


class Recorder(InProcess):
    """A CPU that measures what a GPU does: each work also recorded, launches counted."""

    modes = ("eager", "graph")

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        return lambda: work()

    def launches(self, work: Callable[[], object]) -> int | str:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            work()
        return len(recorded.events() or ())


def wish(device: str, out: Path, setting: Setting, families: tuple[str, ...], rounds: int = 2) -> Asked:
    return Asked(device, [setting], Wish(tuple(names(device, families)), rounds, 30, 1), 540, True, str(out))


def test_a_run_on_a_cpu_writes_every_work_and_a_second_one_measures_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forks.instead_of_spawned(monkeypatch)
    out = tmp_path / "deep" / "kernel.csv"
    words = ["device=cpu", "lengths=64", "against=reference,sdpa", "rounds=2", "threads=1", f"out={out}"]
    assert main(words) == 0
    rows = found(out)
    wholes = [(name, part, "eager") for name in ("mra2", "reference", "sdpa") for part in ("forward", "step")]
    phases = [(*key, "eager") for key in [*counted.PHASES, ("block", "step")]]
    assert set(rows) == {*wholes, *phases, ("copy", "", "eager"), ("matmul", "", "eager")}
    for key in wholes:
        assert min(float(rows[key][column]) for column in ("ms", "ratio")) > 0
    assert min(float(rows[key][column]) for key in phases for column in ("gflops", "matmul_share", "copy_share")) > 0
    assert {row["result"] for row in rows.values()} == {"ok"}
    assert {row["kernel"] for row in rows.values()} == {"cpu"}
    assert rows["mra2", "step", "eager"]["isa"] in ("portable", "avx2", "avx512")
    assert float(rows["mra2", "step", "eager"]["memory_share"]) > 0
    table = [line for line in kernel(read(out)).splitlines() if line.startswith("| 64 | 16 x 32 | float32 |")]
    assert len(table) == 2
    written = out.read_bytes()
    assert main(words) == 0
    assert out.read_bytes() == written
    assert "measured before" in capsys.readouterr().out


def test_a_second_start_adds_what_the_first_one_lacks(tmp_path: Path) -> None:
    out, setting = tmp_path / "kernel.csv", Setting(32, 2, 16, "float32")
    asked = wish("cpu", out, setting, ("sdpa",), rounds=1)
    assert go(asked, InProcess(CPU, False)) == 0
    first = read(out)
    assert go(asked._replace(settings=[setting, setting._replace(length=64)]), InProcess(CPU, False)) == 0
    both = read(out)
    assert both[: len(first)] == first
    assert [row["n"] for row in both[len(first) :]] == ["64"] * len(first)


def test_rows_of_another_source_are_replaced_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernel.csv"
    asked = wish("cpu", out, Setting(32, 2, 16, "float32"), ("sdpa",), rounds=1)
    assert go(asked, InProcess(CPU, False)) == 0
    rows = read(out)
    out.write_text(out.read_text().replace(rows[0]["source"], "0123456789ab"))
    capsys.readouterr()
    assert go(asked, InProcess(CPU, False)) == 0
    assert f"{len(rows)} rows of another source, kernel or machine" in capsys.readouterr().out
    assert {row["source"] for row in read(out)} == {rows[0]["source"]}


def test_time_ends_a_run_on_a_gpu_between_two_sizes_and_a_second_start_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class OnGpu(Recorder):
        ends = True

    out, setting = tmp_path / "kernel.csv", Setting(32, 2, 16, "float32")
    asked = wish("cuda", out, setting, ("reference",), rounds=1)
    asked = asked._replace(settings=[setting, setting._replace(length=64)], until=0)
    assert go(asked, OnGpu(CPU, True)) == 0
    assert "2 sizes are left after 0 s: start again to go on" in capsys.readouterr().out
    assert not out.exists()
    assert go(asked._replace(until=540), OnGpu(CPU, True)) == 0
    assert {row["n"] for row in read(out)} == {"32", "64"}


def test_the_path_of_a_gpu_times_each_backend_eager_and_as_a_graph(tmp_path: Path) -> None:
    out, setting = tmp_path / "kernel_cuda.csv", Setting(96, 6, 16, "bfloat16")
    assert go(wish("cuda", out, setting, ("reference", "sdpa")), Recorder(CPU, True)) == 0
    rows = found(out)
    for part in ("forward", "step"):
        assert {key[0] for key in rows if key[1:] == (part, "eager")} >= {"mra2", "reference", *BACKENDS}
        # Recorded is what the comparison needs; the others would hold too much memory twice.
        assert {key[0] for key in rows if key[1:] == (part, "graph")} >= {"mra2", "sdpa flash", "sdpa cudnn", "block"}
        assert not {("reference", part, "graph"), ("sdpa math", part, "graph")} & set(rows)
        assert rows["sdpa cudnn", part, "graph"]["result"].startswith("does not run: ")
        assert int(rows["mra2", part, "eager"]["launches"]) > 0
        assert float(rows["sdpa flash", part, "graph"]["ratio"]) > 0
    # Half an ulp of bfloat16 at 4, above which no output of normal values comes.
    assert 0 < float(rows["mra2", "forward", "eager"]["error"]) <= 2**-7
    assert {row["dtype"] for row in rows.values()} == {"bfloat16"}
    table = kernel_cuda(read(out))
    assert len([line for line in table.splitlines() if line.startswith("| 96 | 6 x 16 | bfloat16 |")]) == 2
    assert " flash |" in table


def test_too_little_memory_is_a_result(tmp_path: Path) -> None:
    out, setting = tmp_path / "kernel.csv", Setting(2**30, 2**20, 32, "float32")
    assert go(wish("cpu", out, setting, ("sdpa",), rounds=1), Meter(CPU, False)) == 0
    rows = found(out)
    assert {row["result"] for key, row in rows.items() if key[0] not in ("copy", "matmul")} == {"out of memory"}
    assert {key[0] for key in rows} == {"mra2", "sdpa", "choice", "coarse", "block", "copy", "matmul"}


def test_what_fails_in_a_round_is_left_out_and_the_others_go_on() -> None:
    class Full(InProcess):
        calls = 0

        def milliseconds(self, work: Callable[[], object], mode: str) -> float:
            self.calls += 1
            if self.calls == 1:
                raise torch.OutOfMemoryError("full")
            return super().milliseconds(work, mode)

    taken = take(Setting(32, 2, 16, "float32"), Full(CPU, False), Wish(("sdpa", "mra2"), 3, 30, 1))
    assert taken.reasons == {("sdpa", "forward", "eager"): "out of memory"}
    assert {len(times) for times in taken.times.values()} == {3}
    assert ("mra2", "step", "eager") in taken.times


def test_a_broken_device_ends_the_run_in_one_line_and_keeps_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(InProcess):
        def wait(self) -> None:
            raise RuntimeError("an illegal memory access")

    out, setting = tmp_path / "kernel.csv", Setting(32, 2, 16, "float32")
    asked = wish("cpu", out, setting, ("sdpa",), rounds=1)
    assert go(asked, InProcess(CPU, False)) == 0
    written = out.read_bytes()
    assert go(asked._replace(settings=[setting._replace(length=64)]), Broken(CPU, False)) == 1
    said = capsys.readouterr().err
    assert said == "error: the device is of no more use: an illegal memory access\n"
    assert out.read_bytes() == written


def test_our_own_failure_ends_with_an_error_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(MRA2, "attend", broken)
    asked = wish("cpu", tmp_path / "kernel.csv", Setting(32, 2, 16, "float32"), ("sdpa",), rounds=1)
    assert go(asked, InProcess(CPU, False)) == 1
    rows = found(tmp_path / "kernel.csv")
    assert rows["mra2", "forward", "eager"]["result"] == "does not run: no such thing"
    assert rows["sdpa", "forward", "eager"]["result"] == "ok"
    assert rows["sdpa", "forward", "eager"]["ratio"] == ""


# torch.compile's own.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_flex_attention_computes_the_same_pairs_on_a_cpu_and_forward_alone() -> None:
    taken = take(Setting(64, 2, 16, "float32"), InProcess(CPU, False), Wish(("mra2", "flex"), 1, 30, 1))
    assert taken.reasons.keys() == {("flex", "step", "eager")}, taken.reasons
    # The tolerance of torch.testing for float32.
    assert float(taken.facts["flex", "forward"]["error"]) < 1e-5
    assert taken.reasons.keys() == {("flex", "step", "eager")}
    assert "does not support backward on CPU" in taken.reasons["flex", "step", "eager"]


def test_a_dry_run_lists_every_size_and_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernel_cuda.csv"
    assert main(["device=cuda", "dry=true", f"out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 2 * 5 + 1
    assert lines[0].startswith("n   1024  B*H   64  D  32  bfloat16")
    assert lines[-1].startswith("20 sizes x mra2, reference, sdpa flash, ")
    assert not out.exists()


def test_with_all_pairs_the_block_part_is_softmax() -> None:
    shape = counted.Shape(3, 256, 64, 32, 8, 2)
    assert counted.block_forward(shape).operations == counted.softmax(shape, "forward")
    assert counted.block_step(shape).operations == counted.softmax(shape, "step")


def test_what_is_counted_is_what_the_tensors_hold() -> None:
    setting = Setting(330, 4, 16, "float32")
    shape, core = setting.shape, MRA2(2, 16, 330, block_size=BLOCK_SIZE, blocks_per_row=BLOCKS_PER_ROW)
    q, k, v = (torch.randn(2, 2, 330, 16) for _ in range(3))
    pairs = core.choose(q, k, None)
    assert shape.pairs == int((pairs[..., 0] < shape.blocks).sum())
    assert shape.pair_list == pairs.nbytes
    given = pairs.flatten(0, 1), BLOCK_SIZE, None
    out, *small = torch.ops.zoo.coarse_attention(*(x.flatten(0, 1) for x in (q, k, v)), *given)
    assert shape.tensor == q.nbytes == out.nbytes
    lse, *priors = small
    assert (shape.per_token, shape.per_block) == (lse.nbytes, sum(x.nbytes for x in priors))
    read_and_written = q.nbytes + k.nbytes + v.nbytes + pairs.nbytes + out.nbytes + sum(x.nbytes for x in small)
    assert counted.block_forward(shape).bytes == read_and_written


def row(work: str, part: str, mode: str, **facts: Any) -> Row:
    size: dict[str, Any] = {"n": 1024, "batch": 8, "heads": 2, "head_dim": 32, "dtype": "float32", "threads": 2}
    blocks = {"block_size": BLOCK_SIZE, "blocks_per_row": BLOCKS_PER_ROW}
    return Row(**{"work": work, "part": part, "mode": mode, "result": "ok", **size, **blocks, **facts})


def test_bars_stand_beside_the_sizes_that_they_are_for() -> None:
    rows = [
        row("mra2", "step", "eager", memory_share=1.26),
        row("sdpa", "step", "eager", ratio=3.0),
        row("reference", "step", "eager", ratio=4.9),
        row("block", "step", "eager", matmul_share=0.61),
    ]
    said = bars(rows, "cpu")
    assert [line.rpartition(" ")[2] for line in said] == ["met", "missed", "met", "missed"]
    assert bars([line._replace(head_dim=64) for line in rows], "cpu") == []
    best = [row("sdpa flash", "forward", "graph", ms=1.0, ratio=1.3), row("sdpa math", "forward", "graph", ms=9.0)]
    (line,) = bars([each._replace(dtype="bfloat16") for each in best], "cuda")
    assert "forward, graph, ahead of sdpa flash" in line
    assert line.endswith("met")


def test_the_plan_grows_with_the_lengths() -> None:
    def seconds(length: int) -> float:
        setting = Setting(length, 64, 64, "bfloat16")
        return float(plan(wish("cuda", Path("x"), setting, ("sdpa",)))[0].split("about")[1].split()[0])

    assert seconds(65536) > 4 * seconds(16384)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("device=gpu", "error: device=gpu is not one of auto, cpu, cuda"),
        ("lengths=12,x", "error: lengths=x must be an integer of at least 1"),
        ("rounds=0", "error: rounds=0 must be an integer of at least 1"),
        ("dtypes=float64", "error: dtypes=float64 is not one of float32, bfloat16, float16"),
        ("against=softmax", "error: against=softmax is not one of reference, sdpa, flex"),
        ("flush=yes", "error: flush=yes is not one of true, false"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(word: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(answer)
    assert said.count("\n") == 1


def test_torch_and_the_standard_library_are_enough(tmp_path: Path) -> None:
    words = ["device=cpu", "lengths=32", "rounds=1", "threads=1", "against=sdpa", f"out={tmp_path / 'kernel.csv'}"]
    program = f"""
import sys
for name in ("numpy", "hydra", "omegaconf", "wandb", "tensorflow_datasets", "yaml", "rich", "matplotlib", "PIL"):
    sys.modules[name] = None
from concurrent.futures import ThreadPoolExecutor
from benchmarks import taken
from benchmarks.kernel import main
# A process that is spawned here could import them again.
taken.ProcessPoolExecutor = lambda *_, **__: ThreadPoolExecutor(1)
sys.exit(main({words!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {row["result"] for row in read(tmp_path / "kernel.csv")} == {"ok"}
