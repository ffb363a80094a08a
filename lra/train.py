"""`python -m lra.train`: words to a configuration, the configuration to a run, the run to a result.

The only module that knows Hydra. torch is imported after the words have been checked, so that a wrong word is answered
in half a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lra.config import Config, deviations, flat, run_path
from lra.data import folder
from lra.run import Busy, Failed, Run
from lra.tasks import task
from lra.tasks.base import Task
from lra.words import WordError, choose, explain, nearest

CONF = Path(__file__).resolve().parent.parent / "conf"


WRONG_WORDS = (WordError, HydraException, OmegaConfBaseException)
FAILURES = (Failed, Busy, ValueError, OSError)


def main() -> None:
    """The console entry. Exit codes: 0 done, 1 the run failed, 2 the words were wrong, 130 and 143 a signal."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop_before_training)
    if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
        return compose_and(start)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    codes = [0]

    def start_and_tell(words: DictConfig) -> None:
        try:
            start(words)
        except FAILURES as error:
            codes.append(tell(error))

    try:
        compose_and(start_and_tell)
    except WRONG_WORDS as error:
        codes.append(tell(error))
    raise SystemExit(max(codes))


def compose_and(task: Callable[[DictConfig], None]) -> None:
    """Let Hydra read the command line and call `task` with each configuration that it names."""
    store_schema()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()


def tell(error: Exception) -> int:
    """Print the one line that the user reads, return the exit code."""
    wrong = isinstance(error, WRONG_WORDS)
    line = explain(error, known_keys) if wrong else str(error)
    print(f"error: {line}", file=sys.stderr)
    return 2 if wrong else 1


def stop_before_training(signum: int, frame: FrameType | None) -> NoReturn:
    print(f"stopped by {signal.Signals(signum).name} before training began", file=sys.stderr)
    raise SystemExit(128 + signum)


def store_schema() -> None:
    """Register the typed root; the dataclasses are frozen, the node that Hydra merges the YAML into is not."""
    node = OmegaConf.structured(Config)
    for part in (node, node.model, node.train):
        OmegaConf.set_readonly(part, None)
    ConfigStore.instance().store(name="base_config", node=node)


def compose(choices: dict[str, str]) -> dict[str, Any]:
    """The configuration of a recipe as it stands, before any word changes it."""
    config = hydra.compose("config", overrides=[f"{group}={name}" for group, name in choices.items()])
    return to_dict(config)


def known_keys() -> list[str]:
    """Every dotted key of the default configuration."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        keys = flat(compose({}))
    return [*keys, *{key.rpartition(".")[0] for key in keys if "." in key}]


def to_dict(config: Container) -> dict[str, Any]:
    """Plain nested dicts, interpolations resolved."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict), "the root of the configuration is a mapping"
    return {str(key): value for key, value in plain.items()}


def start(words: DictConfig) -> None:
    """Hydra's task function: one run, from its checked words to its result."""
    groups = HydraConfig.get().runtime.choices
    choices = {group: str(groups[group]) for group in ("task", "attn", "protocol")}
    plain, recipe = to_dict(words), compose(choices)
    unknown = [key for key in flat(plain).keys() - flat(recipe).keys() if not key.startswith("attn.")]
    if unknown:
        raise WordError(f"unknown key {unknown[0]!r}{nearest(unknown[0], flat(recipe))}")
    config = OmegaConf.to_object(words)
    assert isinstance(config, Config), "the schema makes the root a Config"

    from lra.tracker import TRACKERS
    from lra.trackio_store import demand

    if choose("tracker", config.tracker, TRACKERS) == "trackio":
        demand("tracker=trackio")
    chosen = task(config.task)
    changed = deviations(plain, recipe)
    path = (
        Path(config.run_dir) if config.run_dir else run_path(Path("runs"), **choices, seed=config.seed, changed=changed)
    )
    facts = {**choices, "source": config.task["source"], "seed": config.seed, "deviations": changed}
    with Run(path, plain) as run:
        done = run.result()
        if done and done["status"] in ("finished", "diverged"):
            return report_done(run, done)
        prepare_data(config, config.task["source"], chosen)
        set_up_torch()
        # Here, so that neither a wrong word nor a finished run waits for torch.
        from lra.session import go

        go(config, with_softmax(), run, facts)


def with_softmax() -> Config:
    """What the words of the command amount to with attn=softmax in place of what they say of the attention."""
    words = HydraConfig.get().overrides.task
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    kept = [
        word for word, key in zip(words, keys, strict=True) if key.partition(".")[0] not in ("attn", "variant", "tune")
    ]
    config = OmegaConf.to_object(hydra.compose("config", overrides=[*kept, "attn=softmax"]))
    assert isinstance(config, Config), "the schema makes the root a Config"
    return config


def set_up_torch() -> None:
    """What torch's libraries read from the environment when they wake up."""
    # CUDA's matrix library is deterministic only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # By default an OpenMP thread spins for milliseconds before it sleeps: where another program has a core, a step
    # takes three times as long as with this. On idle cores nothing is lost.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def report_done(run: Run, done: dict[str, Any]) -> None:
    """The same words again: say what came out of them, do nothing."""
    if done["status"] == "diverged":
        raise Failed(f"{run.path} diverged at step {done.get('steps')}; fresh=true starts it over")
    low, high = done["test"]["ci95"]
    score = f"test accuracy {done['test']['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
    print(f"{run.path} is finished: {score}; fresh=true runs it again")


def prepare_data(config: Config, source: str, chosen: Task) -> None:
    """Run `python -m lra.prepare` where the data set is missing, in a process that leaves no trace in this one."""
    if (folder(config.data_dir, chosen, source) / "manifest.json").exists():
        return
    words = [*chosen.words(source).split(), f"data_dir={config.data_dir}"]
    with subprocess.Popen([sys.executable, "-m", "lra.prepare", *words]) as preparing:
        try:
            code = preparing.wait()
        except SystemExit:
            preparing.terminate()
            raise
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


if __name__ == "__main__":
    main()
