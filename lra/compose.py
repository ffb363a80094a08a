"""From words to configurations, by Hydra: one for `lra.train`, hundreds for `lra.sweep`.

With lra.train and lra.launch this is all that knows Hydra. Nothing here imports torch.
"""

from __future__ import annotations

import copy
import pickle
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import Container, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lra.config import Config, deviations, flat, run_path
from lra.words import WordError, choose, explain, line_of, nearest, one_line

CONF = Path(__file__).resolve().parent.parent / "conf"
# Groups of which a run may have a file or not.
OPTIONAL = ("variant", "tune")
GROUPS = ("task", "attn", "protocol", "recipe", *OPTIONAL)
WRONG_WORDS = (WordError, HydraException, OmegaConfBaseException)
PLAIN_SEED = re.compile(r"seed=\d+")
# Hydra's own groups, which no run looks at and which take most of the time of a composition.
HYDRA_GROUPS = ("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "job_logging", "env")


def tell(error: Exception) -> int:
    """Print the one line that the user reads, return the exit code."""
    wrong = isinstance(error, WRONG_WORDS)
    print(f"error: {one_line(explain(error, known_keys)) if wrong else line_of(error)}", file=sys.stderr)
    return 2 if wrong else 1


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
    store_schema()
    if GlobalHydra.instance().is_initialized():
        keys = flat(compose({}))
    else:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            keys = flat(compose({}))
    return [*keys, *{key.rpartition(".")[0] for key in keys if "." in key}]


def to_dict(config: Container) -> dict[str, Any]:
    """Plain nested dicts, interpolations resolved."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict), "the root of the configuration is a mapping"
    return {str(key): value for key, value in plain.items()}


def to_config(words: DictConfig) -> Config:
    """The typed root, every value checked."""
    config = OmegaConf.to_object(words)
    assert isinstance(config, Config), "the schema makes the root a Config"
    return config


class Planned(NamedTuple):
    """What the words of a run amount to: its configuration, typed and plain, and the directory that it lives in.

    choices: the names of its task, attention and protocol. changed: what its words change in the recipe.
    """

    config: Config
    plain: dict[str, Any]
    choices: dict[str, str]
    changed: dict[str, Any]
    path: Path


def planned(words: DictConfig, choices: dict[str, str], recipe: dict[str, Any]) -> Planned:
    """Check the words of a run against its recipe, and name its directory."""
    plain = to_dict(words)
    unknown = [key for key in flat(plain).keys() - flat(recipe).keys() if not key.startswith("attn.")]
    if unknown:
        raise WordError(f"unknown key {unknown[0]!r}{nearest(unknown[0], flat(recipe))}")
    missing = [key for key in flat(recipe).keys() - flat(plain).keys() if not key.startswith("attn.")]
    if missing:
        raise WordError(f"{min(missing)!r} is taken away, and every run has one")
    config = to_config(words)
    changed = deviations(plain, recipe)
    return Planned(config, plain, choices, changed, path_of(config, choices, changed))


def demand_words(words: Sequence[str]) -> None:
    """WordError where a word is not one that Hydra should see: it would write where no run does, ignore it, or fall."""
    groups = "|".join(GROUPS)
    for word in words:
        if re.search(r"\d{300}", word):
            raise WordError(f"{word[:40]}... has a number of more than 300 digits")
        if not word.isprintable():
            raise WordError(f"{word!r} has characters that no word has")
        if re.match(r"[+~]*=", word):
            raise WordError(f"{word!r} is not of the form key=value")
        if re.match(r"[+~]*hydra\b", word) or "${hydra:" in word:
            raise WordError(f"{word!r} is Hydra's own, and not for a run; make sweep takes hydra/launcher=")
        if (taken := re.match(rf"~({groups})\b(?!\.)", word)) and taken[1] not in OPTIONAL:
            raise WordError(f"{word!r} takes away what every run has")
        if group := re.match(rf"[+]*({groups})(@[^=]*)?=([-+.\d]|\[|.*\$\{{|(?i:null|nan|inf|true|false)$)", word):
            raise WordError(f"{word!r} does not name a file of conf/{group[1]}")


def demand_named(choices: Mapping[str, str | None]) -> None:
    """WordError where a word chooses a file of an optional group that is not there; Hydra would leave it out."""
    for group, usual in zip(OPTIONAL, ("{protocol}_{attn}", "{protocol}_{task}_{attn}"), strict=True):
        name = choices.get(group)
        if name and name != usual.format_map(choices):
            choose(group, name, sorted(file.stem for file in (CONF / group).glob("*.yaml")))


def path_of(config: Config, choices: dict[str, str], changed: dict[str, Any]) -> Path:
    """The directory of a run."""
    if config.run_dir:
        return Path(config.run_dir)
    return run_path(Path("runs"), **choices, seed=config.seed, changed=changed)


def declared(choices: Mapping[str, str | None], plain: Mapping[str, Any]) -> dict[str, Any]:
    """What the published set-up of the chosen attention changes in the plain recipe, where no word takes it back."""
    files = (CONF / group / f"{choices.get(group)}.yaml" for group in ("variant", "tune"))
    mine = flat(plain)
    changed = {
        key: value for file in files if file.exists() for key, value in flat(to_dict(OmegaConf.load(file))).items()
    }
    return {key: value for key, value in changed.items() if mine.get(key) == value}


def softmax_words(words: Sequence[str]) -> list[str]:
    """The words of a run with attn=softmax in place of what they say of the attention."""
    keys = [word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words]
    kept = [
        word for word, key in zip(words, keys, strict=True) if key.partition(".")[0] not in ("attn", "variant", "tune")
    ]
    return [*kept, "attn=softmax"]


class Composer:
    """Composes many runs: each choice of groups once, with Hydra; the other words on copies of it, with Hydra too."""

    def __init__(self) -> None:
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl), "it is Hydra's own"
        self.loader = loader
        self.loader.repository = Kept(self.loader.repository)  # type: ignore[assignment]
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.parsed: dict[str, Override] = {}
        self.bases: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}
        self.recipes: dict[tuple[str, ...], dict[str, Any]] = {}
        self.seedless: dict[tuple[str, ...], Planned] = {}

    def parse(self, words: Sequence[str]) -> list[Override]:
        """The words as Hydra reads them, sweeps over several values included."""
        for word in words:
            if word not in self.parsed:
                (self.parsed[word],) = self.parser.parse_overrides([word])
        return [self.parsed[word] for word in words]

    def planned(self, words: Sequence[str]) -> Planned:
        """What the words of one run amount to: the same as `lra.train` makes of them."""
        others = tuple(word for word in words if not PLAIN_SEED.fullmatch(word))
        if len(others) != len(words) - 1 or any("${" in word for word in others):
            return self.checked(words)
        # Seeds differ in the seed alone.
        if others not in self.seedless:
            self.seedless[others] = self.checked(others)
        (seed,) = (int(word.removeprefix("seed=")) for word in words if word not in others)
        one = self.seedless[others]
        config, plain = replace(one.config, seed=seed), {**one.plain, "seed": seed}
        return one._replace(config=config, plain=plain, path=path_of(config, one.choices, one.changed))

    def checked(self, words: Sequence[str]) -> Planned:
        config, choices = self.composed(words)
        recipe = tuple(f"{group}={name}" for group, name in choices.items())
        if recipe not in self.recipes:
            self.recipes[recipe] = to_dict(self.base(recipe)[0])
        return planned(config, choices, self.recipes[recipe])

    def config(self, words: Sequence[str]) -> Config:
        """The typed root of one run."""
        return to_config(self.composed(words)[0])

    def composed(self, words: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
        """The configuration of one run and the names of its task, attention and protocol."""
        overrides = self.parse(words)
        chooses = [
            self.loader.repository.group_exists(each.key_or_group) and not isinstance(each.value(), dict)
            for each in overrides
        ]
        base, choices = self.base(tuple(word for word, group in zip(words, chooses, strict=True) if group))
        config = copy.deepcopy(base)
        values = [override for override, group in zip(overrides, chooses, strict=True) if not group]
        self.loader._apply_overrides_to_config(values, config)
        return config, choices

    def base(self, groups: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
        """What the words that choose among files amount to."""
        if groups not in self.bases:
            left_out = [f"~hydra/{group}" for group in HYDRA_GROUPS]
            config = hydra.compose("config", overrides=[*groups, *left_out], return_hydra_config=True)
            names = config.hydra.runtime.choices
            demand_named(names)
            choices = {group: str(names[group]) for group in ("task", "attn", "protocol")}
            with open_dict(config):
                del config["hydra"]
            self.bases[groups] = config, choices
            if {word.partition("=")[0] for word in groups} <= choices.keys():
                # Words that choose nothing else are the recipe itself.
                self.bases[tuple(f"{group}={name}" for group, name in choices.items())] = config, choices
        return self.bases[groups]


class Kept:
    """Hydra's files of configuration, each read and parsed once."""

    def __init__(self, files: Any) -> None:
        self.files = files
        self.read: dict[str, bytes] = {}
        self.exists: dict[str, bool] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return self

    def load_config(self, config_path: str) -> Any:
        # Whoever gets it changes it.
        if config_path not in self.read:
            self.read[config_path] = pickle.dumps(self.files.load_config(config_path))
        return pickle.loads(self.read[config_path])

    def config_exists(self, config_path: str) -> bool:
        if config_path not in self.exists:
            self.exists[config_path] = self.files.config_exists(config_path)
        return self.exists[config_path]


@contextmanager
def composer() -> Iterator[Composer]:
    """A composer, while Hydra is set up for it."""
    store_schema()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield Composer()
