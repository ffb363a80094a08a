"""The queries, keys and values that the cores of a trained run get for test examples of its own data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.ops import kernels
from benchmarks.studies.inputs import QKV, made
from lra import checkpoint
from lra.attention import spelled
from lra.commit import git_commit
from lra.config import Config, Model, Train, digest
from lra.data import Data, Split, collate, load
from lra.files import spare
from lra.folders import read_config
from lra.model import Classifier, MultiHead
from lra.run import RunFolder
from lra.seal import demand_result
from lra.session import check, first_core, model_of
from lra.tasks import task
from lra.words import WordError

CHECKPOINTS = ("auto", "best", "last")


class Wanted(NamedTuple):
    """Which weights and test examples: `checkpoint` auto is what the run itself tests, `at_least` counts real tokens
    of an example (of a pair, of its shorter document), `data_dir` is the run's own where it is None."""

    checkpoint: str = "auto"
    examples: int = 4
    at_least: int = 0
    seed: int = 0
    data_dir: str | None = None
    dtype: str = "float16"


def capture(path: Path, wanted: Wanted) -> QKV:
    """An instance for each layer and document; computed in float32 on the CPU, rounded to `wanted.dtype`.

    Nothing in the run's directory is changed. WordError or ValueError where the run or its data are not there or do
    not belong together.
    """
    run, config = configured(path)
    if wanted.data_dir is not None:
        config = replace(config, data_dir=wanted.data_dir)
    kind, source = task(config.task), config.task["source"]
    which = config.train.select if wanted.checkpoint == "auto" else wanted.checkpoint
    saved = weights(run, which)
    data = load(config.data_dir, kind, source)
    past = demand_own_data(run, config, data)
    check(config, data)
    model = model_of(config, data)
    try:
        model.load_state_dict(saved["model"])
    except (KeyError, TypeError, RuntimeError):
        raise WordError(f"run={path}: {which}.pt does not fit the model of config.yaml") from None
    longest = min(data.manifest["max_len"], config.model.seq_len)
    chosen = drawn(data.test, longest, wanted)
    step = saved["step"] if which == "best" else saved["state"]["step"]
    about = {
        "source": f"{config.task['name']} ({source})",
        "task": dict(config.task),
        "protocol": config.protocol,
        "attn": spelled(config.attn),
        "keys": "of their own" if "k" in first_core(model).reads else "the queries",
        "seed": config.seed,
        "checkpoint": which,
        "step": step,
        "val_accuracy": past["val_accuracy"] if step == past["best_step"] else None,
        "config_sha256": digest(run.config),
        "data_sha256": data.manifest["sha256"],
        "split": "test",
        "examples": chosen.tolist(),
        "at_least": wanted.at_least,
        "cut_at": longest,
        "drawn_by_seed": wanted.seed,
        "dtype": wanted.dtype,
        "torch": torch.__version__,
        "commit": git_commit(),
    }
    name = f"{config.task['name']}-{config.attn['name']}-seed{config.seed}-step{step}"
    return look(model, data, chosen, longest, name, about)


def configured(path: Path) -> tuple[RunFolder, Config]:
    """A run's directory and its configuration, as config.yaml says it."""
    file = path / "config.yaml"
    if not file.is_file():
        raise WordError(f"run={path} is not the directory of a run: there is no {file}")
    try:
        plain = read_config(file)
    except ValueError as error:
        raise WordError(str(error)) from error
    try:
        config = Config(**{**plain, "model": Model(**plain["model"]), "train": Train(**plain["train"])})
        task(config.task)
        spelled(config.attn)
        str(config.task["source"])
    except (AttributeError, KeyError, TypeError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise WordError(f"{file} is not readable as a configuration ({said})") from error
    return RunFolder(path, plain), config


def weights(run: RunFolder, which: str) -> dict[str, Any]:
    """The checkpoint `best` or `last`: the weights are its `model`."""
    file = run.best if which == "best" else run.last
    if not is_kept(file):
        others = [name for name, other in (("best", run.best), ("last", run.last)) if is_kept(other)]
        instead = f"checkpoint={others[0]} is there" if others else "the run has kept nothing yet"
        raise WordError(f"there is no {file}; {instead}")
    return opened(file, checkpoint.BEST if which == "best" else checkpoint.LAST)


def is_kept(file: Path) -> bool:
    """Whether there is a checkpoint or its spare."""
    return file.is_file() or spare(file).is_file()


def opened(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A checkpoint with these keys; where it is broken or missing, its spare, and a line on stderr says so."""
    found = checkpoint.look(file, keys)
    if found.fault:
        held = checkpoint.look(spare(file), keys)
        if held.fault:
            raise WordError(f"{file} {found.fault}")
        print(f"{file} {found.fault}: taking {spare(file).name}, of step {held.step}", file=sys.stderr)
        found, file = held, spare(file)
    return checkpoint.parse(found.content, file, torch.device("cpu"))


def history(run: RunFolder) -> dict[str, Any]:
    """What the run says of itself: the hash of its data, its best step and the validation accuracy there."""
    if is_kept(run.last):
        saved = opened(run.last, ("state", "data_sha256"))
        best = {"best_step": saved["state"]["best_step"], "val_accuracy": saved["state"]["best_accuracy"]}
        return {"data_sha256": saved["data_sha256"], **best}
    file = run.path / "result.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        demand_result(result)
        best = {"best_step": result["val"]["best_step"], "val_accuracy": result["val"]["accuracy"]}
        return {"data_sha256": str(result["data_sha256"]), **best}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise WordError(f"neither {run.last} nor {file} says which data the run was trained on") from None


def demand_own_data(run: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """The run's `history`; WordError where it was trained on other data."""
    past = history(run)
    if past["data_sha256"] != data.manifest["sha256"]:
        trained, held = past["data_sha256"][:12], data.manifest["sha256"][:12]
        raise WordError(
            f"run={run.path} was trained on other data (sha256 {trained}) than {config.data_dir} holds ({held}); "
            "data_dir= names another place"
        )
    return past


def drawn(split: Split, longest: int, wanted: Wanted) -> np.ndarray:
    """(E,) int64: examples of a split that are long enough; fewer of the same seed are the first of more."""
    lengths = np.minimum(np.diff(split.offsets), longest)
    lengths = lengths if split.pairs is None else lengths[split.pairs].min(axis=1)
    # Sorting raw Philox words, because numpy freezes that stream but not what its permutation() makes of it.
    order = np.argsort(np.random.Philox(key=wanted.seed).random_raw(len(lengths)), kind="stable")
    fitting = order[lengths[order] >= wanted.at_least]
    if len(fitting) < wanted.examples:
        raise WordError(
            f"examples={wanted.examples}: only {len(fitting)} test examples have at least {wanted.at_least} tokens "
            f"(the longest has {lengths.max()})"
        )
    return fitting[: wanted.examples]


def look(model: Classifier, data: Data, chosen: np.ndarray, longest: int, name: str, about: dict[str, Any]) -> QKV:
    """Run the examples through the model one by one, all padded to the longest, and keep what its cores get."""
    mask_zero = about["task"].get("mask_zero_pixels", False)
    places = collate(data.test, chosen, longest).mask.shape[-1]
    model.eval()
    seen: list[list[tuple[Tensor, ...]]] = []
    with torch.inference_mode(), kernels.use("auto"), watched(model) as calls:
        for index in chosen:
            batch = collate(data.test, np.array([index]), longest, pad_to=places, mask_zero=mask_zero)
            calls.clear()
            model(batch.tokens, batch.mask)
            seen.append(list(calls))
    layers = range(len(seen[0]))
    # (L * E, H, N, D), and (L * E, N) of the mask: layer by layer, of pairs one document after the other.
    *qkv, mask = (
        np.concatenate([calls[layer][part].numpy() for layer in layers for calls in seen]) for part in range(4)
    )
    documents = [""] if data.test.pairs is None else [", document 0", ", document 1"]
    called = [f"example {index}{document}" for index in chosen for document in documents]
    instances = [f"layer {layer}, {text}" for layer in layers for text in called]
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        raise WordError(f"{instances[empty[0]]} has no real token; another seed draws other examples")
    try:
        return made(name, qkv, mask, instances, about, about["dtype"])
    except WordError as error:
        wider = "; dtype=float32 may hold it" if about["dtype"] == "float16" else ""
        raise WordError(f"{error}{wider}") from None


@contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[Tensor, ...]]]:
    """Note what each core is called with, layer by layer: q, k, v (B, H, N, D) and mask (B, N)."""
    calls: list[tuple[Tensor, ...]] = []
    cores = [module.attention for module in model.modules() if isinstance(module, MultiHead)]
    hooks = [core.register_forward_pre_hook(lambda core, given: calls.append(given)) for core in cores]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
