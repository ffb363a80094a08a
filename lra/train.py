"""`python -m lra.train`: words to a configuration, the configuration to a run, the run to a result.

torch is imported after the words have been checked, so that a wrong word is answered in half a second.
"""

from __future__ import annotations

if __name__ == "__main__":
    # Before everything else is imported, so that Ctrl-C has its one line then too.
    from lra.command import answer_signals

    answer_signals()

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lra.compose import (
    CONF,
    WRONG_WORDS,
    compose,
    declared,
    demand_named,
    demand_words,
    planned,
    softmax_words,
    store_schema,
    tell,
    to_config,
)
from lra.config import Config, flat
from lra.data import folder
from lra.ranks import join, let_first_tell, place
from lra.run import STOPS, Busy, Failed, Run, RunFolder
from lra.tasks import task
from lra.tasks.base import Task
from lra.words import WordError, choose

# Keys that need not be the same on all processes of a run: two machines may keep their files in different places.
OWN = ("data_dir", "run_dir", "tracker", "tracker_dir")
# Options of Hydra that would compose another program's configuration, or run code from a file.
FOREIGN = ("config_path", "config_name", "experimental_rerun")
FAILURES = (Failed, Busy, ValueError, OSError, *WRONG_WORDS)


def main() -> None:
    """The console entry. Exit codes: 0 done, 1 the run failed, 2 the words were wrong, 128 + n signal n of STOPS."""
    for signum in STOPS:
        signal.signal(signum, stop_before_training)
    if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
        return compose_and(start)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    codes = [0]

    def start_and_tell(words: DictConfig) -> None:
        try:
            start(words)
        except FAILURES as error:
            codes.append(tell_once(error))

    try:
        compose_and(start_and_tell)
    except WRONG_WORDS as error:
        codes.append(tell_once(error))
    except ValueError as error:
        # What a run raises has been told: this is Hydra's own, over words that it has no better word for.
        codes.append(tell_once(WordError(str(error))))
    raise SystemExit(max(codes))


def compose_and(task: Callable[[DictConfig], None]) -> None:
    """Let Hydra read the command line and call `task` with each configuration that it names."""
    refuse_what_no_run_takes(sys.argv[1:])
    store_schema()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()


def refuse_what_no_run_takes(given: Sequence[str]) -> None:
    """WordError where an option is wrong, or a word is Hydra's own: it would write where no run does, or be ignored."""
    parser = get_args_parser()
    parser.error = wrong_option  # type: ignore[method-assign]
    chosen = parser.parse_args(given)
    for name in FOREIGN:
        if getattr(chosen, name):
            raise WordError(f"--{name.replace('_', '-')}={getattr(chosen, name)} is not for a run")
    demand_words(chosen.overrides)


def wrong_option(message: str) -> NoReturn:
    raise WordError(f"{message}; --help shows what there is")


def tell_once(error: Exception) -> int:
    """Print the one line, once for all processes of a run, and return the exit code."""
    let_first_tell(2 if isinstance(error, WRONG_WORDS) else 1)
    return tell(error)


def stop_before_training(signum: int, frame: FrameType | None) -> NoReturn:
    # A cluster sends more than one for one stop.
    for other in STOPS:
        signal.signal(other, signal.SIG_IGN)
    if place().rank == 0:
        print(f"stopped by {signal.Signals(signum).name} before training began", file=sys.stderr)
    raise SystemExit(128 + signum)


def start(words: DictConfig) -> None:
    """Hydra's task function: one run, from its checked words to its result."""
    groups = HydraConfig.get().runtime.choices
    choices = {group: str(groups[group]) for group in ("task", "attn", "protocol")}
    demand_named(groups)
    config, plain, _, changed, path = planned(words, choices, compose(choices))

    from lra.tracker import TRACKERS
    from lra.trackio_store import demand

    if choose("tracker", config.tracker, TRACKERS) == "trackio":
        demand("tracker=trackio")
    chosen = task(config.task)
    facts = {**choices, "source": config.task["source"], "seed": config.seed, "deviations": changed}
    facts["declared"] = declared(groups, plain)
    at = place()
    if config.train.batch_size < at.world:
        raise WordError(f"train.batch_size={config.train.batch_size} must be at least the {at.world} processes")
    set_up_torch()
    ranks = join(at)
    with ranks.quiet(), ExitStack() as held:
        ranks.demand_same({key: value for key, value in flat(plain).items() if key not in OWN}, WordError)
        with ranks.agreeing():
            run = held.enter_context(Run(path, plain)) if ranks.first else RunFolder(path, plain)
            done = isinstance(run, Run) and is_done(run, config)
        if ranks.told(done):
            return
        with ranks.agreeing():
            if not at.local:
                prepare_data(config, config.task["source"], chosen)
        # Here, so that neither a wrong word nor a finished run waits for torch.
        from lra.session import go

        go(config, with_softmax(), run, facts, ranks)


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


def is_done(run: Run, config: Config) -> bool:
    """Whether the same words have been run to the end; then say what came out of them. Failed where that is nothing."""
    done = run.result()
    if not done or done["status"] not in ("finished", "diverged"):
        return False
    if os.environ.get("WANDB_SWEEP_ID") and config.tracker == "wandb":
        from lra.session import show_again

        show_again(config, run, done)
    if done["status"] == "diverged":
        raise Failed(f"{run.path} diverged at step {done.get('steps')}; fresh=true starts it over")
    low, high = done["test"]["ci95"]
    score = f"test accuracy {done['test']['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
    print(f"{run.path} is finished: {score}; fresh=true runs it again")
    return True


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
