"""Hand the cells of a sweep to one of Hydra's launchers: in this process, side by side, or on a cluster."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from lra.compose import CONF
from lra.job import work
from lra.words import choose

# The launchers whose cells are processes of this machine that end with the sweep.
LOCAL = ("basic", "joblib")
# What a launcher that a plugin registers as <name> is called where conf/ has a file of that name, which extends it.
EXTENDED = "_plugin"


def settings(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The launcher that Hydra's words choose, and its settings; a wrong word is one of WRONG_WORDS."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = configuration(words)
        chosen = OmegaConf.to_container(config.hydra.launcher, resolve=False)
        assert isinstance(chosen, dict), "a launcher's configuration is a mapping"
        return str(config.hydra.runtime.choices["hydra/launcher"]), {str(key): value for key, value in chosen.items()}


class Untold(Exception):
    """What became of a cell is not in the folder of its sweep; the message says why."""


def launch(folder: Path, cells: Sequence[int], words: Sequence[str]) -> None:
    """Run the cells of the sweep in `folder` with the launcher that the words choose, and return when all have ended.

    What the launcher itself fails by is raised; what becomes of a cell is in the folder, and Untold where it could not
    be written there.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = configuration(words)
        HydraConfig.instance().set_config(config)
        loader = GlobalHydra.instance().config_loader()
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=no_callbacks(config)),
            task_function=work,
            config=config,
        )
        # Hydra's sweeper would compose every cell twice before the first begins.
        ends = launcher.launch([[f"folder={folder}", f"cell={cell}"] for cell in cells], initial_job_idx=0)
    if faults := [fault for end in ends or () if (fault := fault_of(end))]:
        raise Untold(faults[0])


def fault_of(end: Any) -> str:
    """What a job of Hydra's failed by, empty where it did not."""
    try:
        # Hydra prints a line of its own before it raises what the job raised.
        with contextlib.redirect_stderr(io.StringIO()):
            end.return_value  # noqa: B018
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def configuration(words: Sequence[str]) -> DictConfig:
    """conf/cells.yaml under Hydra's words, with Hydra's own part."""
    extend_launchers()
    for word in words:
        key, _, value = word.partition("=")
        if key == "hydra/launcher":
            choose(key, value, launchers())
    return hydra.compose("cells", overrides=list(words), return_hydra_config=True)


def launchers() -> list[str]:
    """The names that hydra/launcher= takes."""
    names = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    return [name for name in names if not name.endswith(EXTENDED)]


def extend_launchers() -> None:
    """Let conf/hydra/launcher/<name>.yaml extend what a plugin registers under the same name."""
    Plugins.instance()
    registered = ConfigStore.instance().repo["hydra"]["launcher"]
    for file in (CONF / "hydra" / "launcher").glob("*.yaml"):
        if node := registered.pop(file.name, None):
            registered[f"{file.stem}{EXTENDED}.yaml"] = node


def no_callbacks(config: DictConfig) -> Any:
    """Hydra's way to say that nobody listens to its jobs."""
    from hydra._internal.callbacks import Callbacks

    return Callbacks(config)
