"""`python -m lra.train`: words to a configuration, the configuration to a run, the run to a result.

torch is imported after the words have been checked, so that a wrong word is answered in half a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lra.compose import CONF, WRONG_WORDS, compose, planned, softmax_words, store_schema, tell, to_config
from lra.config import Config
from lra.data import folder
from lra.run import Busy, Failed, Run
from lra.tasks import task
from lra.tasks.base import Task
from lra.words import choose

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


def stop_before_training(signum: int, frame: FrameType | None) -> NoReturn:
    print(f"stopped by {signal.Signals(signum).name} before training began", file=sys.stderr)
    raise SystemExit(128 + signum)


def start(words: DictConfig) -> None:
    """Hydra's task function: one run, from its checked words to its result."""
    groups = HydraConfig.get().runtime.choices
    choices = {group: str(groups[group]) for group in ("task", "attn", "protocol")}
    config, plain, _, changed, path = planned(words, choices, compose(choices))

    from lra.tracker import TRACKERS

    choose("tracker", config.tracker, TRACKERS)
    chosen = task(config.task)
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
    words = softmax_words(HydraConfig.get().overrides.task)
    return to_config(hydra.compose("config", overrides=words))


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
