"""`python -m benchmarks.gradients`: would a run learn otherwise with another attention, at its own weights?

A run that stays where the majority class is raises the question whether its attention is what holds it back. Here the
weights of a run (or fresh ones) get other cores that need no other parameters, the same examples, and no dropout: the
loss, and the gradient of each projection. Where those are the same as with exact softmax, the approximation is not it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from benchmarks.rows import choices, whole_number, write_rows
from benchmarks.studies.generated import whole
from lra.command import command
from lra.words import WordError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lra.config import Config
    from lra.data import Data

PROJECTIONS = ("q", "k", "v")
CHECKPOINTS = ("best", "last", "start")

KEYS = {
    "run": ("none", "directory of a run"),
    "checkpoint": ("start,last", "its weights, a list with commas: best, last, and start for fresh ones"),
    "instead": (
        "softmax",
        "attentions in its place, commas between: `softmax, nystromformer iterations=12`; the rest is as in the run",
    ),
    "examples": ("96", "training examples, drawn by seed, 16 at a time"),
    "seed": ("0", "of the draw"),
    "data_dir": ("auto", "where the run's data are; auto: where its config.yaml says"),
    "threads": ("0", "threads; 0: torch's own choice"),
    "out": ("benchmarks/results/gradients.csv", "the CSV file"),
}
AT_ONCE = 16


class Row(NamedTuple):
    """A line of the CSV file: the gradient of one projection's weights under one attention.

    norm: Euclidean. ratio, cosine: to the gradient that the run's own attention gives, nan where one of them is 0.
    loss: mean over the examples.
    """

    task: str
    protocol: str
    run_attn: str
    run_seed: int
    checkpoint: str
    step: int
    attn: str
    loss: float
    layer: int
    projection: str
    norm: float
    ratio: float
    cosine: float
    examples: int
    data_sha256: str
    commit: str


class Slope(NamedTuple):
    """The loss of some examples and its gradient, by the name of the weights."""

    loss: float
    gradients: dict[str, torch.Tensor]


def exchanged(own: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The words under `attn` that `name key=value ...` stands for in the place of `own`.

    Of the same variant: with its other options. Of another: with what is wrapped around the run's.
    """
    from lra.attention import WRAPS

    name, *words = text.split() or [""]
    kept = own if name == own["name"] else {key: own[key] for key in WRAPS if key in own}
    given: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            sign = ""
        if not (key and sign and value):
            raise WordError(f"instead={text}: {word} must be key=value")
    return {**kept, "name": name, **given}


def slope(config: Config, data: Data, weights: Mapping[str, torch.Tensor], chosen: np.ndarray) -> Slope:
    """Loss and gradients of `chosen` training examples at `weights`, without dropout, in float32 on the CPU."""
    import torch.nn.functional as F

    from attention_zoo.ops import kernels
    from lra.attention import spelled
    from lra.data import collate
    from lra.session import check, model_of

    check(config, data)
    model = model_of(config, data).eval()
    try:
        lacking = model.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError:
        raise WordError(f"instead={spelled(config.attn)} has weights of other sizes than the run") from None
    if lacking:
        raise WordError(f"instead={spelled(config.attn)} needs {lacking[0]}, which the run does not have")
    longest = min(data.manifest["max_len"], config.model.seq_len)
    loss = 0.0
    with kernels.use("auto"):
        for start in range(0, len(chosen), AT_ONCE):
            part = chosen[start : start + AT_ONCE]
            batch = collate(data.train, part, longest, mask_zero=bool(config.task.get("mask_zero_pixels", False)))
            share = F.cross_entropy(model(batch.tokens, batch.mask), batch.labels, reduction="sum") / len(chosen)
            share.backward()
            loss += share.item()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return Slope(loss, found)


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    checkpoints = choices("checkpoint", options["checkpoint"], CHECKPOINTS)
    examples = whole_number("examples", options["examples"], least=1)
    seed = whole("seed", options["seed"], 0, 2**32 - 1)
    threads = whole_number("threads", options["threads"], least=0)
    if Path(options["out"]).suffix != ".csv":
        raise WordError(f"out={options['out']} must end in .csv")
    if options["run"] == "none":
        raise WordError("run= names the directory of a run")

    import numpy as np
    import torch

    from benchmarks.studies.capture import configured, demand_own_data, weights
    from lra import data
    from lra.attention import spelled
    from lra.commit import git_commit
    from lra.session import model_of
    from lra.tasks import task

    if threads:
        torch.set_num_threads(threads)
    folder, config = configured(Path(options["run"]))
    if options["data_dir"] != "auto":
        config = replace(config, data_dir=options["data_dir"])
    texts = options["instead"].split(",")
    others = [replace(config, attn=exchanged(config.attn, text)) for text in texts]
    found = data.load(config.data_dir, task(config.task), config.task["source"])
    count = len(found.train.labels)
    if examples > count:
        raise WordError(f"examples={examples} must be at most {count:,}")
    # Raw Philox words, because numpy freezes that stream but not what its choice() makes of it.
    chosen = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")[:examples]

    rows: list[Row] = []
    for checkpoint in checkpoints:
        if checkpoint == "start":
            state, step = model_of(config, found).state_dict(), 0
        else:
            demand_own_data(folder, config, found)
            saved = weights(folder, checkpoint)
            state, step = saved["model"], saved["step"] if checkpoint == "best" else saved["state"]["step"]
        shared: dict[str, Any] = {
            "task": config.task["name"], "protocol": config.protocol, "run_attn": spelled(config.attn),
            "run_seed": config.seed, "checkpoint": checkpoint, "step": step, "examples": examples,
            "data_sha256": found.manifest["sha256"], "commit": git_commit(),
        }  # fmt: skip
        print(f"{checkpoint} weights (step {step:,}), {examples} training examples, no dropout")
        own = slope(config, found, state, chosen)
        for each in (config, *others):
            there = own if each is config else slope(each, found, state, chosen)
            mine = rows_of(spelled(each.attn), there, own, shared)
            print(line(mine), flush=True)
            rows += mine
    write_rows(options["out"], Row._fields, rows)
    return 0


def rows_of(attn: str, there: Slope, own: Slope, shared: Mapping[str, Any]) -> list[Row]:
    """A row for each layer and projection that both have."""
    rows: list[Row] = []
    for projection in PROJECTIONS:
        names = [name for name in there.gradients if name.endswith(f"project.{projection}.weight")]
        for layer, name in enumerate(names):
            mine, its = there.gradients[name].flatten().double(), own.gradients[name].flatten().double()
            norm, against = mine.norm().item(), its.norm().item()
            row = Row(
                **shared,
                attn=attn,
                loss=round(there.loss, 6),
                layer=layer,
                projection=projection,
                norm=float(f"{norm:.4g}"),
                ratio=round(norm / against, 4) if against else math.nan,
                cosine=round((mine @ its).item() / (norm * against), 4) if norm * against else math.nan,
            )
            rows.append(row)
    return rows


def line(rows: Sequence[Row]) -> str:
    """What one attention gives, as it is printed."""
    each = (f"{row.projection}{row.layer} {row.norm:.2e} (x {row.ratio:.2f}, cos {row.cosine:.3f})" for row in rows)
    return f"{rows[0].attn}\n  loss {rows[0].loss:.4f}; " + ", ".join(each)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.gradients", "The gradients of a run under other attentions.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
