"""Who may import whom, and how long a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from attention_zoo import ZOO
from lra.attention import WRAPS, own_parameters
from lra.config import Config, Model, Train

ROOT = Path(__file__).parent.parent

# The arrows within lra: a module, and the modules of lra that it may import. A new module needs a row, and a reason.
ARROWS = {
    "lra": "",
    # Below everything: words, files, numbers.
    "lra.words": "",
    "lra.folders": "words",
    "lra.command": "words",
    "lra.files": "",
    "lra.seal": "",
    "lra.bar": "",
    "lra.style": "",
    "lra.intervals": "",
    "lra.budget": "",
    "lra.progress": "",
    "lra.tracker": "files trackio_store trackio_view",
    "lra.trackio_store": "words",
    "lra.trackio_view": "trackio_store",
    "lra.shown": "",
    "lra.commit": "",
    "lra.machine": "commit words",
    # Data.
    "lra.tasks": "tasks.base tasks.image tasks.listops tasks.pathfinder tasks.retrieval tasks.text words",
    "lra.arrays": "",
    "lra.tasks.base": "",
    "lra.tasks.draws": "",
    "lra.tasks.snakes": "",
    "lra.tasks.archive": "tasks.base",
    "lra.tasks.download": "tasks.archive tasks.base",
    "lra.tasks.vocabularies": "",
    "lra.tasks.listops": "tasks.archive tasks.base tasks.draws",
    "lra.tasks.image": "tasks.archive tasks.base tasks.download tasks.draws tasks.vocabularies",
    "lra.tasks.retrieval": "tasks.archive tasks.base tasks.draws tasks.pair_statistics tasks.vocabularies",
    "lra.tasks.pair_statistics": "tasks.base",
    "lra.tasks.pathfinder": "arrays tasks.archive tasks.base tasks.draws tasks.snakes tasks.vocabularies words",
    "lra.tasks.text": "tasks.archive tasks.base tasks.download tasks.draws tasks.vocabularies words",
    "lra.data": "arrays seal tasks.base",
    "lra.pictures": "data files style",
    "lra.doctor": "arrays bar data pictures tasks.base",
    "lra.prepare": "bar command data doctor files seal tasks tasks.base words",
    # A run.
    "lra.config": "words",
    "lra.lock": "files",
    "lra.run": "config files folders lock seal words",
    "lra.ranks": "run words",
    "lra.schedule": "config",
    "lra.model": "config",
    "lra.checkpoint": "files folders",
    "lra.attention": "config words",
    "lra.endings": "run",
    "lra.evaluation": "data endings machine ranks",
    "lra.loop": (
        "attention checkpoint config data endings evaluation files machine model progress ranks run schedule tracker"
        " words"
    ),
    "lra.variants": "attention command config files model",
    "lra.predictions": "intervals seal tracker",
    "lra.session": (
        "attention budget config data endings evaluation intervals loop machine model predictions progress ranks run"
        " schedule shown tasks tracker words"
    ),
    "lra.compose": "config words",
    "lra.train": "command compose config data ranks run session tasks tasks.base tracker trackio_store words",
    # Runs under way, and how long those to come will take, from runs/ alone.
    "lra.records": "",
    "lra.pace": "folders records seal",
    "lra.underway": "folders records",
    "lra.screen": "underway",
    "lra.watch": "command screen underway words",
    # Many runs.
    "lra.slurm": "",
    "lra.job": "files lock slurm",
    "lra.launch": "compose job words",
    "lra.forecast": "checkpoint config files loop machine model session tasks words",
    "lra.grid": "compose config published tasks tracker trackio_store words",
    "lra.cost": "config crossover plan tasks",
    "lra.plan": "budget cells config files folders forecast grid lock pace run seal table words",
    "lra.outcome": "job plan table",
    "lra.sweep": "command compose cost data files grid job launch outcome plan run slurm table tasks words",
    # Results read runs/ only.
    "lra.outcomes": "config folders seal",
    "lra.csv_rows": "",
    "lra.published": "csv_rows",
    "lra.verified": "compose config data folders ours outcomes predictions records run seal tasks words",
    "lra.merged": "ours verified",
    "lra.collect": "command compose folders lock merged ours published records verified words",
    "lra.curves": "folders",
    "lra.crossover": "commit folders",
    "lra.cells": "budget folders intervals outcomes published words",
    "lra.notes": "cells folders outcomes published",
    "lra.table": "cells folders notes outcomes published",
    "lra.page": "cells curves folders notes outcomes published style",
    "lra.report": "cells command curves files folders outcomes style words",
    "lra.results": "cells command commit crossover files folders outcomes page published table",
    "lra.panels": "published",
    # Our own results, from runs/published alone.
    "lra.ours": "csv_rows files outcomes published seal",
    "lra.verdicts": "intervals ours published",
    "lra.paired": "intervals ours",
    "lra.differences": "paired published",
    "lra.markdown": "",
    "lra.difference_text": "differences markdown paired",
    "lra.verdict_text": "difference_text differences intervals markdown ours paired published verdicts",
    "lra.verdict_figure": "ours published style verdicts",
    "lra.verdict_page": "command differences files ours paired published verdict_figure verdict_text verdicts words",
    "lra.dashboard": "board command files folders panels tracker words",
    "lra.board": "bar command config folders outcomes shown tracker trackio_store trackio_view words",
}
# Where the packages of others may be imported.
HOMES = {
    "torch": {
        "lra.checkpoint",
        "lra.data",
        "lra.evaluation",
        "lra.loop",
        "lra.machine",
        "lra.model",
        "lra.ranks",
        "lra.session",
    },
    "attention_zoo": {"lra.attention", "lra.forecast", "lra.model", "lra.session", "lra.variants"},
    "csrc": {"lra.tasks.snakes"},
    "hydra": {"lra.compose", "lra.launch", "lra.train"},
    "omegaconf": {"lra.compose", "lra.launch", "lra.train"},
    "yaml": {"lra.folders", "lra.grid", "lra.run", "lra.variants", "lra.verdicts"},
    "wandb": {"lra.dashboard", "lra.tracker"},
    "wandb_workspaces": {"lra.panels"},
    "submitit": {"lra.slurm"},
    "trackio": {"lra.trackio_store"},
    "tensorflow_datasets": {"lra.prepare", "lra.tasks.base", "lra.tasks.image"},
    "PIL": {"lra.tasks.pathfinder"},
    "matplotlib": {"lra.pictures", "lra.report", "lra.verdict_figure"},
    "rich": {
        "lra.bar",
        "lra.outcome",
        "lra.plan",
        "lra.progress",
        "lra.results",
        "lra.screen",
        "lra.sweep",
        "lra.table",
        "lra.watch",
    },
    "numpy": {name for name in ARROWS if name.startswith("lra.tasks.")}
    | {
        "lra.arrays",
        "lra.data",
        "lra.doctor",
        "lra.pictures",
        "lra.prepare",
        "lra.evaluation",
        "lra.loop",
        "lra.machine",
        "lra.ours",
        "lra.paired",
        "lra.predictions",
        "lra.ranks",
        "lra.session",
        "lra.verified",
    },
}


def sources(package: str) -> dict[str, Path]:
    """The modules of a package: dotted name to file."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


LRA, LIBRARY, COMPILED = sources("lra"), sources("attention_zoo"), sources("csrc")
MODULES = LRA | LIBRARY | COMPILED


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports, anywhere in its file, by its whole dotted name."""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import module` is an arrow to the module.
            inner = {f"{origin}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from inner or {origin}


def foreign(module: str) -> set[str]:
    """The packages beyond the standard library and the module's own that a module imports."""
    return {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {module.split(".")[0]}


@pytest.mark.parametrize("module", LRA)
def test_an_arrow_within_lra_is_one_that_the_architecture_draws(module: str) -> None:
    allowed = {f"lra.{name}" for name in ARROWS[module].split()}
    assert {name for name in imports(module) if name.split(".")[0] == "lra"} <= allowed


@pytest.mark.parametrize("module", LRA)
def test_a_package_of_others_is_imported_only_where_it_lives(module: str) -> None:
    assert {package for package in foreign(module) if module not in HOMES.get(package, set())} == set()


def test_the_arrows_of_lra_make_no_circle() -> None:
    left = {module: {f"lra.{name}" for name in names.split()} for module, names in ARROWS.items()}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert left == {}


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_imports_torch_and_itself_alone(module: str) -> None:
    builds = {"csrc"} if module == "attention_zoo.ops.kernels" else set()
    assert foreign(module) <= {"torch"} | builds


@pytest.mark.parametrize("module", COMPILED)
def test_what_compiles_needs_the_standard_library_alone(module: str) -> None:
    assert foreign(module) == set()


def test_importing_the_library_builds_nothing() -> None:
    assert "csrc" not in loaded_by("import attention_zoo")


def test_variants_never_import_each_other() -> None:
    variants = {attention.__module__ for attention in ZOO.values()}
    arrows = {(module, name) for module in variants for name in imports(module) if name in variants}
    assert arrows == set()


def test_ops_know_nothing_of_the_variants() -> None:
    ops = [module for module in LIBRARY if module.startswith("attention_zoo.ops")]
    arrows = {name for module in ops for name in imports(module) if name.split(".")[0] == "attention_zoo"}
    assert {name for name in arrows if not name.startswith("attention_zoo.ops")} == set()


def loaded_by(statement: str) -> set[str]:
    """The top-level packages in memory after `statement` in a new process."""
    program = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["lra.train", "lra.sweep", "lra.prepare", "lra.results", "lra.watch", "lra.dashboard", "lra.board", "lra.collect"],
)
def test_a_command_starts_without_the_packages_that_take_long(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert "lra" in loaded
    assert loaded.isdisjoint({"torch", "wandb", "trackio", "tensorflow_datasets", "tensorflow", "matplotlib"})


def test_a_wrong_word_is_answered_before_torch_is_imported() -> None:
    run = "runpy.run_module('lra.train', run_name='__main__')"
    wrong = (
        f"import contextlib, runpy\nsys.argv = ['lra', 'attn=mra3']\nwith contextlib.suppress(SystemExit): {run}\npass"
    )
    loaded = loaded_by(wrong)
    assert "hydra" in loaded
    assert loaded.isdisjoint({"torch", "wandb", "tensorflow_datasets"})


def test_training_loads_no_tensorflow_and_no_dataset_builder() -> None:
    loaded = loaded_by("import lra.loop, lra.data, lra.tracker")
    assert "torch" in loaded
    assert loaded.isdisjoint({"tensorflow_datasets", "tensorflow"})


def test_a_module_is_named_for_what_it_does() -> None:
    names = {part for module in MODULES for part in module.split(".")}
    assert names.isdisjoint({"utils", "util", "helpers", "helper", "common", "misc", "tools", "lib"})


def over(files: dict[Path, int]) -> dict[str, int]:
    """The files that are longer than their budget, with their lengths."""
    lengths = {file: len(file.read_text().splitlines()) for file in files}
    return {str(file.relative_to(ROOT)): lengths[file] for file in files if lengths[file] > files[file]}


def test_files_keep_their_budgets_of_lines() -> None:
    budgets = {LIBRARY[attention.__module__]: 150 for attention in ZOO.values()}
    budgets |= {file: 15 for file in (ROOT / "conf").rglob("*.yaml")}
    assert over(budgets | {LRA["lra.train"]: 300, ROOT / "README.md": 250}) == {}


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "attn").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_configured_attention_names_every_parameter_of_its_class(file: Path) -> None:
    keys = yaml.safe_load(file.read_text())
    own = own_parameters(keys.pop("name"))
    assert keys.keys() - WRAPS.keys() == set(own)


def test_every_key_of_the_configuration_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    keys = {
        f"{group}.{key}" for group, part in (("model", Model), ("train", Train)) for key in part.__dataclass_fields__
    }
    keys |= Config.__dataclass_fields__.keys() - {"task", "attn", "protocol", "model", "train"}
    assert {key for key in keys if f"`{key}`" not in text and f"`{key.split('.')[-1]}`" not in text} == set()


def test_every_attention_of_the_zoo_is_configured() -> None:
    assert {file.stem for file in (ROOT / "conf" / "attn").glob("*.yaml")} >= ZOO.keys()
