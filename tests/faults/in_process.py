"""`python -m lra.train` within this process, as far as one training step: its words are all real, its data are not."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

import lra.session
import lra.train
from attention_zoo.ops import kernels
from lra.config import Config
from lra.data import Data, Split, collate
from lra.ranks import Ranks
from lra.run import STOPS, RunFolder
from lra.tasks.base import Task

EXAMPLES = 8


class Answer(NamedTuple):
    """What a command said and did. built: whether a model was built and trained for a step."""

    code: int
    stdout: str
    stderr: str
    built: bool = False

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()


def made_up(data_dir: str, task: Task, source: str, verify: bool) -> Data:
    """A few short documents of a task's vocabulary."""
    rng = np.random.default_rng(0)
    splits, facts = [], {}
    for name in ("train", "val", "test"):
        documents = EXAMPLES * (2 if task.paired else 1)
        lengths = rng.integers(1, 40, documents)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = rng.integers(0, len(task.vocabulary), offsets[-1]).astype(np.uint8)
        labels = rng.integers(0, task.classes, EXAMPLES).astype(np.uint8)
        pairs = np.arange(documents, dtype=np.int32).reshape(-1, 2) if task.paired else None
        splits.append(Split(tokens, offsets, labels, pairs))
        facts[name] = {"examples": EXAMPLES, "class_counts": np.bincount(labels, minlength=task.classes).tolist()}
    manifest = {
        "sha256": "0" * 64, "vocabulary": list(task.vocabulary), "classes": task.classes, "max_len": task.max_len,
        "kind": task.kind, "splits": facts,
    }  # fmt: skip
    return Data(manifest, *splits)


class Bench:
    """Where words are tried: each in a folder of its own below `root`."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch, self.count, self.built = root, patch, 0, False
        patch.setattr(lra.train, "prepare_data", lambda *about: None)
        patch.setattr(lra.session, "load", made_up)
        patch.setattr(lra.session, "go", self.go)
        # What Hydra does again and again with the same outcome: reading its files, and asking for its own mode.
        load = ConfigRepository.load_config
        read: dict[str, bytes] = {}

        def load_once(files: ConfigRepository, config_path: str) -> Any:
            if config_path not in read:
                read[config_path] = pickle.dumps(load(files, config_path))
            return pickle.loads(read[config_path])

        patch.setattr(ConfigRepository, "load_config", load_once)
        patch.setattr(Hydra, "get_mode", lambda *about, **more: None)
        recipes: dict[str, dict[str, Any]] = {}
        compose = lra.train.compose

        def compose_once(choices: dict[str, str]) -> dict[str, Any]:
            if str(choices) not in recipes:
                recipes[str(choices)] = compose(choices)
            return recipes[str(choices)]

        patch.setattr(lra.train, "compose", compose_once)

    def folder(self) -> Path:
        """The folder of the words that were tried last."""
        return self.root / str(self.count)

    def train(self, words: Sequence[str]) -> Answer:
        """`python -m lra.train <words>` in an empty folder."""
        self.count += 1
        self.built = False
        self.folder().mkdir()
        return called(lambda given: lra.train.main(), words, self.folder(), "lra.train")._replace(built=self.built)

    def go(self, config: Config, rival: Config, run: RunFolder, facts: dict[str, Any], ranks: Ranks) -> None:
        """What takes the place of a run: all that comes before its first step, the step, and a look at the test."""
        with kernels.use(config.kernel):
            trainer = lra.session.set_up(config, run, ranks)
            rivals = lra.session.size_of(rival, trainer.data)
            about = {**facts, **lra.session.circumstances(trainer), "params_softmax": rivals}
            lra.session.announce(trainer, about)
            trainer.update(trainer.sampler.batch(0))
            trainer.model.eval()
            batch = collate(trainer.data.test, np.arange(2), trainer.max_len, mask_zero=trainer.mask_zero)
            with torch.no_grad():
                assert trainer.model(batch.tokens, batch.mask).shape == (2, trainer.data.manifest["classes"])
            trainer.close()
        self.built = True


def called(
    main: Callable[[list[str]], int | None], words: Sequence[str], folder: Path, name: str = "command"
) -> Answer:
    """The main function of a command with `words`, in `folder`."""
    with _as_a_process([name, *words], folder) as said:
        try:
            code = main(list(words)) or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Answer(code, said[0].getvalue(), said[1].getvalue())


@contextlib.contextmanager
def _as_a_process(argv: Sequence[str], folder: Path) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """What a process has to itself: words, folder, environment, signals, stdout and stderr."""
    before = {each: signal.getsignal(each) for each in STOPS}
    state = os.getcwd(), dict(os.environ), sys.argv
    torch_state = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    out, err = io.StringIO(), io.StringIO()
    GlobalHydra.instance().clear()
    os.chdir(folder)
    sys.argv = list(argv)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err
    finally:
        os.chdir(state[0])
        os.environ.clear()
        os.environ.update(state[1])
        sys.argv = state[2]
        torch.use_deterministic_algorithms(torch_state[0])
        torch.set_rng_state(torch_state[1])
        GlobalHydra.instance().clear()
        for each, handler in before.items():
            signal.signal(each, handler)
