"""Words for `python -m lra.train`, right and wrong, drawn from the configuration as it is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import yaml

from lra.attention import WRAPS, own_parameters
from lra.compose import CONF
from lra.config import (
    DEVICES,
    DTYPES,
    INITS,
    KERNELS,
    PADDINGS,
    PAIRINGS,
    POOLINGS,
    POSITIONS,
    SCHEDULES,
    SELECTS,
    Config,
    Model,
    Train,
)  # fmt: skip
from lra.tasks import TASKS

# A model that is built in milliseconds; drawn words come after these.
SMALL = (
    "model.seq_len=64", "model.layers=1", "model.dim=16", "model.heads=2", "model.head_dim=8", "model.ffn=16",
    "train.batch_size=4", "device=cpu", "tracker=jsonl",
)  # fmt: skip
# Values of every key of the typed root, each right where nothing else is said.
RIGHT: dict[str, Sequence[Any]] = {
    "model.layers": (1, 2), "model.dim": (8, 16, 12), "model.heads": (1, 2, 3), "model.head_dim": (4, 8, 16),
    "model.ffn": (1, 8, 32), "model.dropout": (0, 0.0, 0.1, 0.999, "1e-3"), "model.seq_len": (32, 64, 65, 100),
    "model.pooling": POOLINGS, "model.positions": POSITIONS, "model.bias": ("true", "false", "yes", "off"),
    "model.init": INITS, "model.pairing": PAIRINGS,
    "train.steps": (1001, 5000, "10_000"), "train.batch_size": (1, 3, 8), "train.lr": (1e-4, "3e-4", 1, 5e-324, "1e3"),
    "train.warmup": (2, 100, 4999), "train.schedule": SCHEDULES, "train.weight_decay": (0, 0.1),
    "train.beta2": (0, 0.5, 0.999), "train.eps": ("1e-8", 0.5), "train.clip": (0, 1.0),
    "train.cycle_momentum": ("true",),
    "train.select": SELECTS, "train.padding": PADDINGS, "train.eval_every": (1, 50), "train.log_every": (1, 7),
    "train.checkpoint_every": (1, 1000), "train.dtype": DTYPES, "train.compile": ("false", "no", "0"),
    "train.micro_batch": ("auto", 1, 4),
    "protocol": ("mlpen", "google"), "seed": (0, 1, 2**32 - 1),
    "data_dir": ("elsewhere", "'a b'", "ünï", "${protocol}"),
    "run_dir": ("here", "here/there", "null", "'with, comma'"), "tracker": ("jsonl", "offline"),
    "tracker_dir": ("there",),
    "device": ("auto", "cpu"), "kernel": ("auto", "reference", "cpu"), "fresh": ("true", "false"),
}  # fmt: skip
ATTENTIONS = sorted(file.stem for file in (CONF / "attn").glob("*.yaml"))
CHOICES = {"task": sorted(TASKS), "attn": ATTENTIONS, "protocol": ["google", "mlpen"]}
NAMES = [*RIGHT, *CHOICES]
COUNTS = ("model.layers", "model.dim", "model.heads", "model.head_dim", "model.ffn", "model.seq_len", "train.steps",
          "train.batch_size", "train.warmup", "train.eval_every", "train.log_every",
          "train.checkpoint_every")  # fmt: skip
NUMBERS = ("model.dropout", "train.lr", "train.weight_decay", "train.beta2", "train.eps", "train.clip")
FLAGS = ("model.bias", "train.cycle_momentum", "train.compile", "fresh")
ENUMS: dict[str, Sequence[str]] = {
    "model.pooling": POOLINGS, "model.positions": POSITIONS, "model.init": INITS, "model.pairing": PAIRINGS,
    "train.schedule": SCHEDULES, "train.select": SELECTS, "train.padding": PADDINGS, "train.dtype": DTYPES,
    "device": DEVICES, "kernel": KERNELS, "tracker": ("jsonl", "offline", "wandb", "trackio"),
}  # fmt: skip
ODD = (
    "", "null", "nan", "inf", "-inf", "0", "-1", "1e-400", "1e400", "10" * 20, "1" + "0" * 30, "1" + "0" * 5000,
    "1.5", "true", "[]", "[1,2]", "{}", "{a:1}", "abc", "ü", "\N{SNOWMAN}", "''", "'a", '"', "a b", "[", "]", "{",
    "}", ")", "(", "a,b", "1,2", "${seed}", "${oc.env:HOME}", "${missing}", "${", "${oc.env:NOT_THERE}", "${model}",
    "${.}", "${oc.decode:x}", "${hydra:job}", "choice(1,2)", "range(3)", "glob(*)", "x" * 1000, "\udcff", "1\n2",
    "\t", "\\", "$", "%", "a=b", "=", "~", "???", "*", "@", "!", "1_000", "0x10", "0b1", "1__0", "0o7", "01", "+1",
    "..", "/",
)  # fmt: skip
ATTENTION_VALUES = ("0", "-1", "1", "2", "3", "4", "5", "8", "16", "31", "32", "33", "64", "65", "128", "1000000000",
                    "1" + "0" * 30, "0.5", "nan", "inf", "true", "false", "null", "mean", "softmax", "row", "length",
                    "[1,2]", "[32,8,1]", "[1,1]", "[8,8]", "[4,4]", "[]", "[a]", "{}", "", "[true,true]",
                    "[1.0,2.0]")  # fmt: skip


class Word(NamedTuple):
    """A word. right: by itself, None where it depends on others; near: the name that it misspells."""

    text: str
    right: bool | None
    near: str = ""

    @property
    def key(self) -> str:
        return self.text.partition("=")[0].lstrip("+~")


def every_key() -> set[str]:
    """The dotted keys of the typed root, without those of `task` and `attn`."""
    inner = {f"{part}.{each.name}" for part, kind in (("model", Model), ("train", Train)) for each in fields(kind)}
    return inner | {each.name for each in fields(Config)} - {"task", "attn", "model", "train"}


def misspelt(rng: random.Random, name: str) -> str:
    """A name at distance 1 from `name`: a letter dropped, doubled, in the other case, or two of them swapped."""
    while True:
        at = rng.randrange(len(name))
        swapped = name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :]
        wrong = rng.choice(
            [name[:at] + name[at + 1 :], name[: at + 1] + name[at:], swapped,
            name[:at] + name[at].swapcase() + name[at + 1 :]]
        )  # fmt: skip
        if wrong not in ("", name) and not wrong.startswith((".", "-")):
            return wrong


def distance(a: str, b: str) -> int:
    """Letters dropped, put in, replaced, or swapped with the next, between two names."""
    rows = [[max(i, j) if not (i and j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 2 : i] == b[j - 1] + b[j - 2]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


def right_word(rng: random.Random) -> list[Word]:
    """A word that is right by itself, with what it needs."""
    kind = rng.random()
    if kind < 0.2:
        name = rng.choice(ATTENTIONS)
        return [Word(f"attn={name}", True)]
    if kind < 0.3:
        name = rng.choice(sorted(TASKS))
        # An image is never cut, and a model knows how long it is.
        sized = [Word(f"model.seq_len={TASKS[name]().max_len}", True)] if TASKS[name].kind == "pixels" else []
        return [Word(f"task={name}", True), *sized]
    if kind < 0.35:
        name = rng.choice(["text", "retrieval", "listops"])
        return [Word(f"task={name}", True), Word(f"task.source={rng.choice(TASKS[name].sources)}", True)]
    key = rng.choice(list(RIGHT))
    return [Word(f"{key}={rng.choice(RIGHT[key])}", True)]


def attention_word(rng: random.Random) -> list[Word]:
    """An attention with a value of a parameter of its own, or of what can be put around it, that may be right."""
    name = rng.choice(ATTENTIONS)
    own = yaml.safe_load((CONF / "attn" / f"{name}.yaml").read_text(encoding="utf-8"))["name"]
    key = rng.choice([*own_parameters(own), *WRAPS])
    return [
        Word(f"attn={name}", True),
        Word(f"{rng.choice(['', '', '++'])}attn.{key}={rng.choice(ATTENTION_VALUES)}", None),
    ]


def wrong_name(rng: random.Random) -> list[Word]:
    """A key or a choice with one letter wrong."""
    if rng.random() < 0.5:
        key = rng.choice(list(RIGHT))
        wrong = misspelt(rng, key)
        return [Word(f"{wrong}={rng.choice(RIGHT[key])}", False, key)] if wrong not in NAMES else right_word(rng)
    key = rng.choice([*CHOICES, *ENUMS])
    allowed = (ENUMS | CHOICES)[key]
    name = rng.choice(list(allowed))
    wrong = misspelt(rng, name)
    return [Word(f"{key}={wrong}", False, name)] if wrong not in allowed else right_word(rng)


def wrong_type(rng: random.Random) -> list[Word]:
    key = rng.choice([*COUNTS, *NUMBERS, *FLAGS, *ENUMS, "seed"])
    values = ["abc", "[1,2]", "{a:1}", "''", "null", ""]
    if key in (*COUNTS, "seed", *FLAGS):
        values += ["1.5", "nan", "inf", "1e-400"]
    return [Word(f"{key}={rng.choice(values)}", False)]


def out_of_range(rng: random.Random) -> list[Word]:
    if rng.random() < 0.5:
        key = rng.choice(COUNTS)
        least = ["0", "-1", "-1000000000000", "-1" + "0" * 30]
        most = ["1" + "0" * 30, "1000000000000"] if key.startswith("model.") or key == "train.batch_size" else []
        return [Word(f"{key}={rng.choice([*least, *most])}", False)]
    values = {"train.lr": ("0", "-1", "nan", "inf", "-inf", "1e-400", "1e400"), "model.dropout": ("1", "-0.1", "nan",
    "inf"),
              "seed": ("-1", str(2**32), "1" + "0" * 30), "train.beta2": ("1", "-1", "nan"), "train.eps": ("0", "1",
              "nan"),
              "train.clip": ("-1", "inf", "nan"), "train.weight_decay": ("-1e-9", "nan", "inf"),
              "train.micro_batch": ("0", "-1", "9", "1.5", "atuo")}  # fmt: skip
    key = rng.choice(list(values))
    return [Word(f"{key}={rng.choice(values[key])}", False)]


def odd_word(rng: random.Random) -> list[Word]:
    """Something that people, shells and scripts write by mistake; most of it is wrong."""
    key, odd = rng.choice([*RIGHT, *CHOICES, "task.source", "attn.name", "model", "train"]), rng.choice(ODD)
    return [Word(rng.choice([
        f"{key}={odd}", f"{key}={odd}", f"{key}={odd}", f"+{key}={odd}", f"++{key}={odd}", f"~{key}={odd}", f"~{key}",
        f"+new={odd}", f"++attn.new={odd}", f"+task.new={odd}", f"{key}", f"{key}@x={odd}", f"{key}.={odd}",
        f".{key}={odd}",
        f"{key.replace('.', '..')}={odd}", f"{key}.x={odd}", f"{key}:{odd}", f"{key} = {odd}", f"{odd}={key}", f"{odd}",
        f"'{key}={odd}'", f"{key}=={odd}", f"{key}.0={odd}", f"{key}[0]={odd}", f"attn.grid={odd}", f"attn.tile={odd}",
    ]), None)]  # fmt: skip


def hydras_word(rng: random.Random) -> list[Word]:
    return [Word(rng.choice([
        "hydra.run.dir=outputs", "hydra.run.dir=${seed}", "hydra/launcher=joblib", "hydra/launcher=nothing",
        "hydra.output_subdir=.hydra", "hydra.job.chdir=true", "hydra.mode=MULTIRUN", "hydra.sweep.dir=x", "hydra=x",
        "hydra/job_logging=default", "+hydra.x=1", "hydra.verbose=true", "hydra.searchpath=[x]", "hydra/sweeper=basic",
        "~hydra.run", "hydra.job.name=x", "hydra.job.env_set={A:b}", "hydra.callbacks={x:1}", "hydra/output=x",
    ]), False)]  # fmt: skip


def option(rng: random.Random) -> list[Word]:
    return [Word(rng.choice(["-x", "--foo", "--foo=1", "--seed=1", "--cfg=jobs", "--info=x", "--config-name=x",
                             "--config-path=x", "--config-dir=x", "--experimental-rerun=x", "--resolve", "--package"]),
                 False)]  # fmt: skip


def twice(rng: random.Random) -> list[Word]:
    key = rng.choice(list(RIGHT))
    return [Word(f"{key}={rng.choice(RIGHT[key])}", True) for _ in range(2)]


MISTAKES: Sequence[tuple[Callable[[random.Random], list[Word]], float]] = (
    (attention_word, 5), (wrong_name, 5), (wrong_type, 3), (out_of_range, 3), (odd_word, 8), (hydras_word, 1),
    (option, 0.5),
)  # fmt: skip


def drawn(rng: random.Random) -> list[Word]:
    """One to six things at once: all right, or with one mistake, or with several."""
    share = rng.choice([0.0, 0.3, 0.6, 1.0])
    count = rng.choice([1, 1, 2, 3, 4, 6])
    words: list[Word] = []
    makers, weights = zip(*MISTAKES, strict=True)
    for _ in range(count):
        make = rng.choices(makers, weights)[0] if rng.random() < share else rng.choice([right_word] * 9 + [twice])
        words += make(rng)
    return words


def names_one(line: str, words: Iterable[Word]) -> bool:
    """Whether a line names the key or the value of one of the words, or a part of it where it is very long."""
    for word in words:
        key, _, value = word.text.partition("=")
        bare = key.lstrip("+~")
        parts = {word.text, bare, bare.rpartition(".")[2], bare.partition("@")[0], value.strip("'\""), word.text[:40]}
        escaped = {part.encode("unicode_escape", "surrogatepass").decode() for part in parts}
        if any(part and part in line for part in parts | escaped):
            return True
    return False
