"""Keys and passwords of the environment, of netrc and of git's remotes reach no file and no terminal."""

from __future__ import annotations

import base64
import gzip
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lra.tasks.base import Place as DataPlace
from lra.tasks.download import Published, fetch
from tests import forks, runs
from tests.faults import FULL, canaries

# Runs a module of the checkout in the current folder.
PROGRAM = """
import runpy, sys
sys.path.insert(0, {checkout!r})
sys.argv = {words!r}
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
SAVE = """
import sys
from pathlib import Path
sys.path.insert(0, {checkout!r})
from lra import dashboard
try:
    dashboard.save_online("lra", "", Path("saved.json"), int({words!r}[0]))
except OSError as error:
    sys.exit(f"error: {{error}}")
"""
QUICK = ("attn=softmax", "train.steps=4", "train.warmup=2", "train.eval_every=2", "train.checkpoint_every=2")


class Place:
    """A checkout whose remote has a token in its address, an environment full of secrets, and what comes of both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkout, home = folder, folder / "checkout", folder / "home"
        for package in ("lra", "attention_zoo", "csrc", "conf"):
            shutil.copytree(
                runs.ROOT / package, self.checkout / package, ignore=shutil.ignore_patterns("__pycache__", "*.so")
            )
        remote = f"https://user:{canaries.IN_A_REMOTE}@127.0.0.1:9/repository.git"
        author = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false")
        for words in (["init", "-q"], ["remote", "add", "origin", remote], ["add", "lra/commit.py"]):
            subprocess.run(["git", *words], cwd=self.checkout, check=True)
        subprocess.run(["git", *author, "commit", "-q", "-m", "one"], cwd=self.checkout, check=True)
        without = {name: value for name, value in runs.environment().items() if not name.startswith("WANDB_")}
        (folder / "temporary").mkdir()
        self.environ = without | canaries.environment(home) | {
            "PYTHONPATH": str(self.checkout), "TMPDIR": str(folder / "temporary"),
        }  # fmt: skip
        # Where the secrets come from.
        self.given = frozenset({home / ".netrc", self.checkout / ".git" / "config"})
        self.said = ""

    def words(self, *words: str) -> list[str]:
        """The words of a tiny run in the folder, without `python -m`."""
        return runs.arguments(self.folder, *QUICK, f"tracker_dir={self.folder / 'tracked'}", *words)[1:]

    def run(self, words: list[str], tally: Counter[str], program: str = PROGRAM, **environ: str) -> int:
        """Run a module with words; what it says is kept."""
        source = program.format(checkout=str(self.checkout), words=words)
        done = forks.run(["-c", source], self.checkout, self.environ | environ)
        self.said += done.stdout + done.stderr
        tally["supply: commands with secrets around them"] += 1
        return done.returncode

    def demand_silence(self, tally: Counter[str]) -> None:
        """No canary in anything said so far nor in any file, but for those that the test itself wrote."""
        leaks, searched = canaries.search(self.folder, self.given)
        assert leaks == {}
        assert canaries.told(self.said.encode()) == []
        tally["supply: bytes searched for secrets"] += searched + len(self.said)
        tally["supply: secrets found"] += 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("secrets"))


def test_the_search_finds_a_secret_in_every_form(tmp_path: Path) -> None:
    for number, secret in enumerate(canaries.ALL):
        plain = secret.encode()
        forms = [b"%s" % plain, b"Basic " + base64.b64encode(b"u" * number + b":" + plain), plain.hex().encode()]
        for form, data in enumerate([*forms, gzip.compress(plain)]):
            (tmp_path / f"{number}-{form}").write_bytes(data if form == 3 else b"before " + data + b" after")
    leaks, _ = canaries.search(tmp_path)
    assert len(leaks) == 4 * len(canaries.ALL)


def test_a_finished_run_and_the_comparison_keep_no_secret(place: Place, tally: Counter[str]) -> None:
    run = place.folder / "whole"
    assert place.run(place.words("tracker=offline", f"run_dir={run}"), tally) == 0, place.said
    (file,) = place.folder.glob("tracked/wandb/offline-run-*/run-*.wandb")
    assert len(list(canaries.unpacked(file))) > 10
    assert len(runs.result(run)["git_commit"]) == 40
    assert place.run(["lra.results", f"runs={place.folder}"], tally) == 0, place.said
    place.demand_silence(tally)


if FULL:
    # Its patience alone takes ten seconds.
    def test_a_run_whose_server_does_not_answer_keeps_no_secret(place: Place, tally: Counter[str]) -> None:
        run = place.folder / "unanswered"
        assert place.run(place.words("tracker=wandb", f"run_dir={run}"), tally) == 0, place.said
        assert "warning: tracker=wandb: " in place.said
        place.demand_silence(tally)


WRONG = (
    ("attn=softmx",),
    ("task=image", "task.source=cifar10"),
    ("run_dir=.git/config",),
    ("device=cuda",),
)


@pytest.mark.parametrize("full", ["0", "1"])
def test_a_run_that_fails_tells_no_secret(place: Place, full: str, tally: Counter[str]) -> None:
    before = len(place.said)
    # With tracebacks each of them takes as long as without.
    for words in WRONG if FULL else WRONG[:1]:
        assert place.run(place.words("tracker=jsonl", *words), tally, HYDRA_FULL_ERROR=full) != 0
    assert ("Traceback" in place.said[before:]) == (full == "1")
    place.demand_silence(tally)


@pytest.mark.parametrize("proxy", ["{}", "user:{}", "user:{}@127.0.0.1:9", "user:{}/more@127.0.0.1:9", "[{}]:1"])
def test_a_download_that_fails_tells_no_password_of_a_proxy(
    proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    for name, value in canaries.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://" + proxy.format(canaries.WORDS[1]))
    # A name that nobody has; the proxy is asked for it, not this machine.
    published = Published("file.tar.gz", "https://nowhere.invalid/file.tar.gz", 1, "0" * 64)
    with pytest.raises(ValueError, match="cannot be reached") as caught:
        fetch(published, DataPlace(tmp_path / "data", tmp_path / "data"), "task.source=synthetic")
    assert canaries.told(str(caught.value).encode()) == []
    tally["supply: commands with secrets around them"] += 1


# Twelve processes that import torch.
if FULL:

    @pytest.mark.parametrize("launcher", ["joblib", "basic"])
    def test_a_sweep_keeps_no_secret(place: Place, launcher: str, tally: Counter[str]) -> None:
        words = [word for word in place.words("tracker=jsonl", "seed=0,1")[1:] if not word.startswith("run_dir=")]
        # A sweep starts processes that begin as it did: not as a fork.
        done = subprocess.run(
            [sys.executable, "-m", "lra.sweep", *words, f"hydra/launcher={launcher}"],
            cwd=place.checkout, env=place.environ, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        place.said += done.stdout
        tally["supply: commands with secrets around them"] += 1
        assert done.returncode == 0, done.stdout
        assert list(place.checkout.rglob("cells.json"))
        place.demand_silence(tally)
        # The next launcher finds nothing done.
        shutil.rmtree(place.checkout / "runs")

    @pytest.mark.parametrize("seconds", [2, 20])
    def test_a_comparison_that_cannot_be_saved_online_tells_no_secret(
        place: Place, seconds: int, tally: Counter[str]
    ) -> None:
        before = len(place.said)
        assert place.run([str(seconds)], tally, program=SAVE) == 1
        assert "error: not saved online: " in place.said[before:]
        place.demand_silence(tally)
