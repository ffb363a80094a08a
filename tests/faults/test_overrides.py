"""Any words at all: what is right composes, builds and trains a step; the rest is one line and exit code 2."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import lra.results
import lra.train
import lra.watch
from lra import prepare, report, sweep
from lra.words import nearest
from tests import forks
from tests.faults import FULL, amount, draws
from tests.faults.drawn_words import (
    ODD,
    RIGHT,
    SMALL,
    Word,
    drawn,
    every_key,
    misspelt,
    names_one,
    wrong_name,
)  # fmt: skip
from tests.faults.in_process import Answer, Bench, called
from tests.runs import environment

# Parts of the attack, which may run side by side.
PARTS = range(amount(1, 10))
LONGEST_LINE = 400


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        yield Bench(tmp_path, patch)


def assert_refused(answer: Answer, words: Sequence[Word]) -> None:
    """One line that names a word, and the nearest name where only one letter of one name is wrong."""
    assert answer.code == 2, answer
    assert not answer.built
    assert len(answer.lines) == 1, answer.stderr
    (line,) = answer.lines
    assert line.startswith("error: ")
    assert len(line) < LONGEST_LINE, line
    suspects = [word for word in words if word.right is not True] or list(words)
    certain = [word for word in words if word.right is False]
    assert names_one(line, certain if len(suspects) == len(certain) == 1 else words), line
    if len(suspects) == len(certain) == 1 and certain[0].near:
        assert "did you mean" in line, line


def assert_right_or_one_line(answer: Answer, words: Sequence[Word], folder: Path) -> None:
    if answer.code == 0:
        assert answer.built
        assert answer.stderr == ""
        # Of two words for one key the later counts.
        last = {word.key: word for word in words}
        assert not any(word.right is False for word in last.values()), answer.stdout
    else:
        assert_refused(answer, words)
        assert list(folder.iterdir()) == []
        assert not (len(words) == 1 and words[0].right), answer.stderr


def test_every_key_of_the_configuration_is_drawn() -> None:
    assert set(RIGHT) == every_key()


@pytest.mark.parametrize("part", PARTS)
def test_words_train_a_step_or_are_one_line_that_names_one_and_leave_nothing(
    bench: Bench, tally: Counter[str], part: int
) -> None:
    for k in range(amount(10, 50)):
        words = drawn(draws("overrides", part, k))
        texts = [word.text for word in words]
        answer = bench.train([*SMALL, *texts])
        try:
            assert_right_or_one_line(answer, words, bench.folder())
        except AssertionError as error:
            pytest.fail(f"{texts}: {error}")
        shutil.rmtree(bench.folder())
        tally["overrides: sets of words"] += 1
        tally["overrides: words"] += len(words)
        tally["overrides: sets that built a model and trained a step"] += answer.code == 0
        tally["overrides: sets refused in one line"] += answer.code == 2
        tally["overrides: tracebacks"] += "Traceback" in answer.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.dim=1000000000000"], "model.dim=1000000000000 must be at most 1048576"),
        (["model.dim=1000000", "model.ffn=1000000"], "there is no memory for a model of model.layers=1"),
        (["model.layers=1025"], "model.layers=1025 must be at most 1024"),
        (["train.steps=1" + "0" * 30], "must be at most 2**53"),
        (["attn=nystromformer", "attn.iterations=2000000000"], "attn.iterations=2000000000 must be at most 1048576"),
        (["attn.block_size=nan"], "attn.block_size=nan must be at most"),
        (["seed=1" + "0" * 5000], "seed=10000000000000000000000000000000000... has a number of more than 300 digits"),
        (["train.lr=1" + "0" * 3000], "train.lr"),
        (["attn=null"], "'attn=null' does not name a file of conf/attn"),
        (["attn=1e-400"], "'attn=1e-400' does not name a file of conf/attn"),
        (["task=[text]"], "'task=[text]' does not name a file of conf/task"),
        (["~attn"], "'~attn' takes away what every run has"),
        (["~model"], "'model.bias' is taken away, and every run has one"),
        (["~seed"], "'seed' is taken away"),
        (["~task.source"], "'task.source' is taken away"),
        (["variant=google_softmx"], "variant=google_softmx is not one of google_bigbird"),
        (["tune=mlpen_text"], "tune=mlpen_text is not one of google_image_bigbird"),
        (["hydra.run.dir=outputs"], "'hydra.run.dir=outputs' is Hydra's own"),
        (["++hydra.output_subdir=x"], "'++hydra.output_subdir=x' is Hydra's own"),
        (["--foo"], "unrecognized arguments: --foo; --help"),
        (["--cfg=jobs"], "invalid choice: 'jobs'"),
        (["--resolve"], "--resolve"),
        (["--experimental-rerun=run.pickle"], "--experimental-rerun=run.pickle is not for a run"),
        (["--config-name=cells"], "--config-name=cells is not for a run"),
        (["seed=1\n2"], r"'seed=1\n2' has characters that no word has"),
        (["data_dir=\udcff"], r"'data_dir=\udcff' has characters that no word has"),
        (["train.checkpoint_every=???"], "train.checkpoint_every"),
        (["attn.grid=${hydra:job}"], "attn.grid"),
        (["=attn"], "'=attn' is not of the form key=value"),
        (["data_dir="], "data_dir= must be the name of a folder"),
        (["seed=${missing}"], "seed: Interpolation key 'missing' not found"),
    ],
    ids=lambda value: ascii(value)[2:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_once_fell_through_is_one_line(bench: Bench, words: list[str], says: str) -> None:
    answer = bench.train([*SMALL, *words])
    assert (answer.code, answer.built, len(answer.lines)) == (2, False, 1), answer.stderr
    assert says in answer.stderr
    assert len(answer.lines[0]) < LONGEST_LINE
    assert list(bench.folder().iterdir()) == []


@pytest.mark.parametrize("k", range(amount(1, 12)))
def test_a_process_of_its_own_says_the_same(tmp_path: Path, bench: Bench, tally: Counter[str], k: int) -> None:
    rng = draws("process", k)
    words = wrong_name(rng) if k % 2 == 0 else drawn(rng)
    here = bench.train([*SMALL, *(word.text for word in words)])
    if here.code == 0 and not FULL:
        words = [Word("trian.lr=1", False, "train.lr")]
        here = bench.train([*SMALL, *(word.text for word in words)])
    if any("\udcff" in word.text for word in words):
        words = [Word("seed=x", False)]
        here = bench.train([*SMALL, *(word.text for word in words)])
    there = tmp_path / "there"
    there.mkdir()
    short = ("task.source=synthetic", "train.steps=4", "train.warmup=2", "train.eval_every=4")
    if here.code == 0:
        # A real run of the words, as short as they let it be; words that say otherwise came from no draw of these keys.
        words = [
            word
            for word in words
            if word.key.partition(".")[0] not in ("train", "task", "tracker", "fresh", "protocol")
        ]
        done = forks.run(["-m", "lra.train", *SMALL, *short, *(word.text for word in words)], there, environment())
        assert done.returncode == 0, done.stderr
        assert list(there.rglob("result.json"))
    else:
        done = forks.run(["-m", "lra.train", *SMALL, *(word.text for word in words)], there, environment())
        assert (done.returncode, done.stderr) == (here.code, here.stderr)
        assert list(there.iterdir()) == []
    tally["overrides: processes of their own"] += 1


COMMANDS: dict[str, tuple[Callable[[list[str]], int], Sequence[str]]] = {
    "lra.sweep": (sweep.main, ("sweep", "plan", "retry", "threads", *RIGHT)),
    "lra.prepare": (prepare.main, ("task", "task.source", "data_dir", "task.split", "task.max_len", "task.resolution")),
    "lra.results": (lra.results.main, tuple(lra.results.KEYS)),
    "lra.report": (report.main, tuple(report.KEYS)),
    "lra.watch": (lra.watch.main, tuple(lra.watch.KEYS)),
}


def one_of(command: str, k: int) -> list[str]:
    """Words for a command, most of them wrong."""
    rng = draws(command, k)
    keys = COMMANDS[command][1]
    key = rng.choice(keys)
    wrong = misspelt(rng, key)
    odd = rng.choice([word for word in ODD if "\udcff" not in word])
    words = [f"{key}={odd}", f"{wrong}={odd}", odd, f"--{key}={odd}", f"{key}", f"{key} {odd}", f"={odd}", f"-{odd}"]
    return [rng.choice(words)]


@pytest.mark.parametrize("part", range(amount(1, 4)))
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_other_commands_answer_any_word_in_one_line(
    tmp_path: Path, tally: Counter[str], command: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(25 * part, 25 * part + amount(2, 25)):
        words = one_of(command, k)
        folder = tmp_path / str(k)
        folder.mkdir()
        # Where the words are right, a plan and an empty folder are enough.
        extra = ["plan=true"] if command == "lra.sweep" else []
        if command == "lra.prepare":
            monkeypatch.setattr(prepare, "prepare", lambda *about: None)
        answer = called(COMMANDS[command][0], [*extra, *words], folder)
        assert answer.code in (0, 1, 2), (words, answer)
        assert "Traceback" not in answer.stderr
        if answer.code:
            assert len(answer.lines) == 1, (words, answer)
            assert answer.stderr.startswith("error: "), (words, answer)
            assert len(answer.lines[0]) < LONGEST_LINE, (words, answer)
        if answer.code == 2:
            assert list(folder.iterdir()) == [], words
        tally[f"overrides: words of {command}"] += 1


def test_a_name_with_one_letter_wrong_is_found_again() -> None:
    names = [*RIGHT, "task", "attn"]
    for k in range(amount(200, 2000)):
        rng = draws("nearest", k)
        name = rng.choice(names)
        wrong = misspelt(rng, name)
        assert wrong in names or "did you mean" in nearest(wrong, names), wrong
