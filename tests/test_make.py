"""The laws of the Makefile, on a copy of it whose Python is a shell script: nothing is installed here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Answers the checks of the Makefile, writes down every call, prints its words separated by NUL.
VENV_PYTHON = f"""#!/bin/sh
if [ "$1" = -c ]; then exec {sys.executable} -S "$@"; fi
echo "$*" >> calls
if [ "$2" = pip ] && [ -e fail ]; then exit 1; fi
if [ "$2" = pip ] && [ -e gate ]; then read open < gate; rm -f gate; fi
if [ "$2" != pip ] && [ "$2" != compileall ]; then printf '%s\\0' "$@"; fi
"""
# Is suitable, and makes a .venv that holds the script above.
BASE_PYTHON = f"""#!/bin/sh
if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi
echo "$*" >> calls
mkdir -p .venv/bin && cp venv_python .venv/bin/python
"""
LOCK = """rich==1 \\
    --hash=sha256:1
setuptools==1 \\
    --hash=sha256:2 \\
    --hash=sha256:3
torchless==1 \\
    --hash=sha256:4
"""
# Prints the lock that it is to write again as it was, but for one package, and what only Windows and CUDA need.
UV = """#!/bin/sh
echo "$*" >> calls
for out; do :; done
case "$*" in *--constraint*) name=added;; *) name=torch;; esac
printf '%s\\n' "$name==2 \\\\" '    --hash=sha256:6' \\
  "colorama==1 ; sys_platform == 'win32' \\\\" '    --hash=sha256:7' \\
  "kept==1 ; sys_platform != 'win32' \\\\" '    --hash=sha256:8' \\
  "nvidia-x==1 ; sys_platform == 'linux' \\\\" '    --hash=sha256:9' > "$out"
"""
WORDS = [
    "train.lr=1e-3",
    "+foo=1",
    "++a.b=1",
    "~x=1",
    "hydra/launcher=joblib",
    "attn=mra2,softmax",
    "tags=[a,b]",
    "scales=(32,8,1)",
    "attn=glob(*)",
    "seed=${seed}",
    "open=$(shell echo no",
    "cost=$5 and $$6",
    "name=two words",
    'quote=it\'s "both"',
    "empty=",
    "hash=a#b",
    "back=a\\b\\",
    "pipe=a|b;c&d>e",
    "percent=%s",
    "tick=`echo no`",
    "equals=a=b",
]


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A repository in which nothing is set up; the base Python is ./base_python."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text(LOCK)
    for extra in ("torch", "audit"):
        (tmp_path / f"requirements-{extra}.lock").touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks").mkdir()
    for name in ("__init__", "speed", "memory"):
        (tmp_path / "benchmarks" / f"{name}.py").touch()
    executable(tmp_path / "venv_python", VENV_PYTHON)
    executable(tmp_path / "base_python", BASE_PYTHON)
    return tmp_path


@pytest.fixture
def ready(bare: Path) -> Path:
    """A repository that is set up."""
    (bare / ".venv" / "bin").mkdir(parents=True)
    executable(bare / ".venv" / "bin" / "python", VENV_PYTHON)
    (bare / ".venv" / ".ready").write_text(f"{bare.resolve()}\n")
    return bare


def start(repository: Path, *words: str) -> subprocess.Popen[str]:
    """make, as from a shell: these tests may run inside another make."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("MAKE") and key not in ("MFLAGS", "PYTHON")
    }
    return subprocess.Popen(
        ["make", *words], cwd=repository, env=inherited, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def make(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    process = start(repository, *words)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def passed(repository: Path, *words: str) -> list[str]:
    """The words that Python was given."""
    done = make(repository, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


def calls(repository: Path) -> list[str]:
    return (repository / "calls").read_text().splitlines()


@pytest.mark.parametrize("word", WORDS)
def test_a_word_reaches_python_as_it_was_typed(ready: Path, word: str) -> None:
    assert passed(ready, "lra", word) == ["-m", "lra.train", word]


def test_all_words_reach_python_together(ready: Path) -> None:
    # Of two words for one key make knows the last; what glob(*) would give is not asked here.
    words = [word for word in WORDS if word != "attn=glob(*)"]
    assert sorted(passed(ready, "lra", *words)) == sorted(["-m", "lra.train", *words])


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("lra", ["lra.train"]),
        ("sweep", ["lra.sweep"]),
        ("watch", ["lra.watch"]),
        ("dashboard", ["lra.dashboard"]),
        ("data", ["lra.prepare"]),
        ("data-doctor", ["lra.prepare", "--doctor"]),
        ("compare", ["lra.results"]),
        ("collect", ["lra.collect"]),
        ("results", ["lra.verdict_page"]),
        ("bench", ["benchmarks.speed"]),
        ("qkv", ["benchmarks.studies.qkv"]),
        ("figures", ["benchmarks.studies.figures"]),
        ("test-faults", ["tests.faults"]),
        ("audit", ["tests.audit"]),
    ],
)
def test_a_target_runs_its_module_with_the_words(ready: Path, target: str, module: list[str]) -> None:
    (ready / ".venv" / ".audit").touch()
    assert passed(ready, target, "task=listops", "ARGS=--cfg job") == ["-m", *module, "task=listops", "--cfg", "job"]


def test_a_dashboard_in_the_browser_installs_what_it_needs_once(ready: Path) -> None:
    (ready / "requirements-dashboard.lock").write_text("trackio==0.43.0\n")
    assert passed(ready, "dashboard", "view=trackio")[1:] == ["lra.dashboard", "view=trackio"]
    installed = [call for call in calls(ready) if "requirements-dashboard.lock" in call]
    assert len(installed) == 1
    assert passed(ready, "dashboard", "view=trackio") == ["-m", "lra.dashboard", "view=trackio"]
    assert [call for call in calls(ready) if "requirements-dashboard.lock" in call] == installed


@pytest.mark.parametrize("name", ["peers", "dashboard", "audit"])
def test_what_is_added_to_the_set_up_is_installed_by_its_hashes_and_alone(ready: Path, name: str) -> None:
    (ready / f"requirements-{name}.lock").touch()
    assert make(ready, f".venv/.{name}").returncode == 0
    (call,) = calls(ready)
    assert {"--require-hashes", "--no-deps"} <= set(call.split())
    assert call.endswith(f"--requirement requirements-{name}.lock")


def locks_again(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make lock` with a uv of ours."""
    for extra in ("peers", "dashboard", "audit", "torch"):
        (repository / f"requirements-{extra}.lock").write_text(f"# {extra}\n")
    (repository / "requirements.lock").write_text("# one\n# two\nold==1 \\\n    --hash=sha256:5\n")
    (repository / "tools").mkdir()
    executable(repository / "tools" / "uv", UV)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{repository / 'tools'}:{os.environ['PATH']}")
        return make(repository, "lock", *words)


def test_locks_are_made_again_without_what_torch_brings_and_windows_needs(ready: Path) -> None:
    done = locks_again(ready, "ARGS=--upgrade")
    assert (done.returncode, done.stderr) == (0, "")
    kept = "kept==1 ; sys_platform != 'win32' \\\n    --hash=sha256:8\n"
    assert (ready / "requirements.lock").read_text() == f"# one\n# two\n{kept}"
    assert (ready / "requirements-torch.lock").read_text() == "# torch\ntorch==2\n"
    for extra in ("peers", "dashboard", "audit"):
        text = (ready / f"requirements-{extra}.lock").read_text()
        assert text == f"# {extra}\nadded==2 \\\n    --hash=sha256:6\n{kept}"
    first, *others = calls(ready)
    assert "--generate-hashes" in first
    assert "--upgrade" in first
    assert "--no-emit-package" not in first
    assert len(others) == 3
    assert all(
        "--no-emit-package kept --constraint requirements-torch.lock --no-emit-package torch" in call for call in others
    )
    assert "--extra dashboard --extra browser" in others[1]


def test_locks_without_uv_are_one_line(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ready / "tools").mkdir()
    for tool in ("make", "sh", "awk", "sort", "cat", "python3"):
        path = shutil.which(tool)
        assert path
        (ready / "tools" / tool).symlink_to(path)
    monkeypatch.setenv("PATH", str(ready / "tools"))
    done = make(ready, "lock")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("error: no uv on the PATH")


def test_bench_takes_the_name_of_a_benchmark(ready: Path) -> None:
    assert passed(ready, "bench", "name=memory", "repeats=3") == ["-m", "benchmarks.memory", "repeats=3"]


def test_bench_takes_the_name_of_a_study(ready: Path) -> None:
    assert passed(ready, "bench", "study=entropy", "n=512") == ["-m", "benchmarks.studies.entropy", "n=512"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["study=entropie"], "study=entropie is not a study; there are approximation entropy efficiency"),
        (["study=entropy", "name=memory"], "name=memory and study=entropy: one of the two"),
        (["study="], "study= is not a study; there are approximation entropy efficiency"),
    ],
)
def test_bench_answers_a_wrong_study_in_one_line(ready: Path, words: list[str], answer: str) -> None:
    done = make(ready, "bench", *words)
    assert done.returncode == 2
    assert answer in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bench_lists_the_benchmarks_for_an_unknown_name(ready: Path) -> None:
    done = make(ready, "bench", "name=sped")
    assert done.returncode == 2
    assert "name=sped is not a benchmark; there are memory speed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_word_without_equals_stops_make_before_anything_runs(ready: Path) -> None:
    done = make(ready, "lra", "listops")
    assert done.returncode == 2
    assert "no target 'listops'" in done.stderr
    assert not (ready / "calls").exists()


def test_words_are_no_environment_for_python(ready: Path) -> None:
    executable(ready / ".venv" / "bin" / "python", '#!/bin/sh\n[ "$1" = -c ] || env\n')
    done = make(ready, "lra", "seed=7", "task=listops")
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert "PATH" in names
    assert names.isdisjoint({"seed", "task"})


def test_a_failure_of_python_is_a_failure_of_make(ready: Path) -> None:
    executable(ready / ".venv" / "bin" / "python", '#!/bin/sh\n[ "$1" = -c ] || exit 130\n')
    done = make(ready, "lra")
    assert done.returncode == 2
    assert "Error 130" in done.stderr


def test_a_signal_to_make_reaches_python(ready: Path) -> None:
    program = (
        f"#!{sys.executable}\n"
        "import signal, sys\n"
        "if sys.argv[1] == '-c': sys.exit()\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
        "print('training', flush=True)\n"
        "signal.pause()\n"
    )
    executable(ready / ".venv" / "bin" / "python", program)
    process = start(ready, "lra")
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out == "saved\n"


def test_help_names_every_target_once(bare: Path) -> None:
    done = make(bare)
    listed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  make ")]
    expected = (
        "lra sweep watch compare collect results dashboard variants bench qkv figures kernels data"
        " data-doctor setup test test-parity test-browser test-faults test-cluster test-gpu test-gpu-sanitizer"
        " check-cuda peers lint format lock audit licences clean help"
    )
    assert sorted(listed) == sorted(expected.split())
    assert not (bare / "calls").exists()


def test_the_first_call_sets_up_and_the_second_does_not(bare: Path) -> None:
    assert "setting up .venv" in make(bare, "setup", "PYTHON=./base_python").stdout
    steps = calls(bare)
    assert steps[0] == "-m venv .venv"
    assert [step.split("check ")[-1] for step in steps[1:]] == [
        "install --require-hashes --requirement .venv/setuptools.lock",
        "install --require-hashes --compile --no-build-isolation --requirement requirements.lock",
        "install --compile --no-build-isolation --requirement requirements-torch.lock",
        "install --no-build-isolation --no-deps --config-settings editable_mode=compat --editable .",
        "-m compileall -q lra attention_zoo",
    ]
    first = "setuptools==1 \\\n    --hash=sha256:2 \\\n    --hash=sha256:3\n"
    assert (bare / ".venv" / "setuptools.lock").read_text() == first
    assert passed(bare, "lra", "seed=1") == ["-m", "lra.train", "seed=1"]
    assert calls(bare) == [*steps, "-m lra.train seed=1"]


def test_a_set_up_that_failed_starts_from_nothing_the_next_time(bare: Path) -> None:
    (bare / "fail").touch()
    done = make(bare, "lra", "PYTHON=./base_python")
    assert done.returncode == 2
    assert "set-up failed" in done.stderr
    assert not (bare / ".venv" / ".ready").exists()
    (bare / "fail").unlink()
    (bare / ".venv" / "half_installed").touch()
    assert make(bare, "setup", "PYTHON=./base_python").returncode == 0
    assert not (bare / ".venv" / "half_installed").exists()
    assert calls(bare).count("-m venv .venv") == 2


@pytest.mark.parametrize("changed", ["requirements.lock", "requirements-torch.lock", "pyproject.toml"])
def test_changed_requirements_are_installed_into_the_same_venv(ready: Path, changed: str) -> None:
    stamp = (ready / ".venv" / ".ready").stat().st_mtime
    os.utime(ready / changed, (stamp + 1, stamp + 1))
    assert "setting up" in make(ready, "setup", "PYTHON=./base_python").stdout
    assert "-m venv .venv" not in calls(ready)


def test_a_repository_that_was_moved_is_set_up_again(ready: Path) -> None:
    (ready / ".venv" / ".ready").write_text("/elsewhere\n")
    assert "setting up" in make(ready, "setup", "PYTHON=./base_python").stdout
    assert (ready / ".venv" / ".ready").read_text() == f"{ready.resolve()}\n"


def test_a_venv_whose_python_is_gone_is_made_again(ready: Path) -> None:
    (ready / ".venv" / "bin" / "python").unlink()
    assert make(ready, "setup", "PYTHON=./base_python").returncode == 0
    assert calls(ready)[0] == "-m venv .venv"


def test_two_makes_at_once_set_up_once(bare: Path) -> None:
    os.mkfifo(bare / "gate")
    first = start(bare, "setup", "PYTHON=./base_python")
    assert first.stdout is not None
    assert "setting up" in first.stdout.readline()
    second = start(bare, "setup", "PYTHON=./base_python")
    assert second.stdout is not None
    assert "another make is setting up" in second.stdout.readline()
    with (bare / "gate").open("w") as gate:
        gate.write("open\n")
    first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert calls(bare).count("-m venv .venv") == 1


def test_an_unsuitable_python_is_answered_in_one_line(bare: Path) -> None:
    executable(bare / "old_python", "#!/bin/sh\nexit 1\n")
    done = make(bare, "lra", "PYTHON=./old_python")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("error: ./old_python is not Python 3.11 to 3.13")
    assert not (bare / ".venv").exists()


def test_clean_keeps_runs_and_results(ready: Path) -> None:
    kept = ready / "runs" / "mlpen" / "result.json"
    kept.parent.mkdir(parents=True)
    kept.touch()
    for folder in ("lra/__pycache__", "build", "tests", "attention_zoo", "csrc"):
        (ready / folder).mkdir(parents=True)
    assert make(ready, "clean").returncode == 0
    assert kept.exists()
    assert (ready / ".venv" / ".ready").exists()
    assert not (ready / "lra" / "__pycache__").exists()
    assert not (ready / "build").exists()
