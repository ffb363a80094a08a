"""One run from its data to its result: set up, train, test, and tell what came out, whatever the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from attention_zoo.base import Attention
from attention_zoo.ops import kernels
from lra import machine
from lra.attention import spelled
from lra.budget import excess
from lra.config import Config, digest, identity
from lra.data import Data, collate, load
from lra.endings import Diverged, OutOfMemory, Stopped, StopSignal
from lra.evaluation import Scores
from lra.intervals import wilson
from lra.loop import Trainer, build
from lra.model import Classifier, MultiHead, parameter_count
from lra.predictions import tables
from lra.progress import Display
from lra.ranks import ALONE, Lost, Ranks, leave
from lra.run import Failed, Run, RunFolder
from lra.schedule import peak
from lra.shown import summary, view_config
from lra.tasks import task
from lra.tracker import RecordOnly, Table, Tracker, open_tracker, read_metrics
from lra.words import WordError

# What of a result is no part of what trackers show beside a run's summary.
NOT_SHOWN = ("config", "test", "val", "train", "files", "sha256")


def go(config: Config, rival: Config, run: RunFolder, facts: dict[str, Any], ranks: Ranks) -> None:
    """Train and test, then write result.json. Ends in Failed (exit code 1) or SystemExit where there is no result.

    rival: what the same words amount to with softmax, whose parameters the run's are held against.
    Each process of a run goes through this with the others; the first one, which has a Run, writes.
    """
    with kernels.use(config.kernel):
        _go(config, rival, run, facts, ranks)


def _go(config: Config, rival: Config, run: RunFolder, facts: dict[str, Any], ranks: Ranks) -> None:
    trainer = set_up(config, run, ranks)
    about = {**facts, **circumstances(trainer), "params_softmax": size_of(rival, trainer.data)}
    announce(trainer, about)
    tracker = open_view(config, run, about)
    status, line, code, scores = "finished", "", 0, None
    try:
        with Display(config.train.steps, trainer.state.step) as display:
            try:
                trainer.train(tracker, display)
                scores = trainer.conclude()
            except Stopped as stopped:
                status, code = "interrupted", 128 + stopped.signum
                line = f"stopped at step {trainer.state.step} with everything saved; the same words go on from there"
            except Diverged as diverged:
                status, code = "diverged", 1
                trainer.state.step = diverged.step
                kept = f"{run.last.parent} keeps the last good state" if run.last.exists() else "nothing was saved yet"
                line = f"{diverged.why} at step {diverged.step}; {kept}; try a lower train.lr"
            except OutOfMemory as error:
                status, code, line = "out_of_memory", 1, str(error)
        trainer.close()
        result = outcome(status, trainer, scores, about)
        if isinstance(run, Run):
            if status == "interrupted":
                run.finish(result)
            if scores:
                trainer.write_predictions(scores[0])
                tracker.tables(tables_of(trainer, scores[0]))
            tracker.finish(summary(result), code)
            # Last, as a run that has its result does nothing more: killed here, it would leave its view open for good.
            if status != "interrupted":
                run.finish(result)
            if status == "interrupted":
                print(line, file=sys.stderr)
        # torchrun ends the others where one ends with an error: none goes before the first has written everything.
        ranks.gather("end")
    except Lost as lost:
        tracker.finish({}, 1)
        raise Lost(f"{lost}; the same words go on from the last checkpoint in {run.last.parent}") from lost
    if scores:
        return conclude(result, trainer)
    if not ranks.first:
        leave(code)
    if status != "interrupted":
        raise Failed(line)
    raise SystemExit(code)


def set_up(config: Config, run: RunFolder, ranks: Ranks = ALONE) -> Trainer:
    """The trainer of a configuration on the device that it asks for, at its last checkpoint if there is one."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with ranks.agreeing():
        device = machine.pick_device(config.device, ranks.place.local, ranks.place.neighbours)
        dtype = machine.pick_dtype(config.train.dtype, device)
        # Neighbours share a disk, or what the machine keeps of it: one reads all, the others wait for its verdict.
        data = load(config.data_dir, task(config.task), config.task["source"], verify=not ranks.place.local)
        check(config, data)
        model = model_of(config, data)
        # Refused before anything is written.
        kernel_of(model, device)
        model.to(device)
    ranks.demand_same(
        {
            "the data (sha256)": data.manifest["sha256"],
            "the device": device.type,
            "the dtype": str(dtype),
            "the version of torch": torch.__version__.partition("+")[0],
        }
    )
    ranks.connect(device)
    with ranks.agreeing():
        trainer = Trainer(config, model, data, run, device, dtype, StopSignal(), ranks)
    return trainer


def check(config: Config, data: Data) -> None:
    """Raise WordError where a configuration asks of its data what they do not have."""
    examples = len(data.train.labels)
    if examples < config.train.batch_size:
        raise WordError(f"train.batch_size={config.train.batch_size} must be at most the {examples} training examples")
    longest = data.manifest["max_len"]
    if data.manifest.get("kind") == "pixels" and config.model.seq_len < longest:
        raise WordError(f"model.seq_len={config.model.seq_len} must be at least {longest}: an image is never cut")


def model_of(config: Config, data: Data) -> Classifier:
    """The model of a configuration for the vocabulary, the classes and the documents per example of its data."""
    return build(config, len(data.manifest["vocabulary"]), data.manifest["classes"], data.train.pairs is not None)


def size_of(config: Config, data: Data) -> int:
    """The parameters of a configuration's model."""
    # Made in earnest: torch's meta device spends seconds on imports the first time that it is used.
    return parameter_count(model_of(config, data))


def circumstances(trainer: Trainer) -> dict[str, Any]:
    """What a run stands on, as result.json says it."""
    kernel = kernel_of(trainer.model, trainer.device)
    return {
        "params": parameter_count(trainer.model),
        "processes": trainer.ranks.world,
        "device": machine.device_name(trainer.device),
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "kernel": kernel,
        # Dropout and the copies of heads are compiled for a CPU whatever the attention is.
        "kernel_sha256": machine.kernel_sha256() if kernels.ready(trainer.device) else None,
        "exact_share": exact_share(trainer),
        "data_sha256": trainer.data.manifest["sha256"],
        "config_sha256": digest(trainer.run.config),
        "git_commit": machine.git_commit(),
        "versions": machine.versions(),
    }


def kernel_of(model: Classifier, device: torch.device) -> str | None:
    """The kernel that the attention runs on; WordError where it is not the one that was asked for."""
    try:
        kernels.prepare(device)
        return first_core(model).kernel(device)
    except kernels.KernelError as error:
        raise WordError(str(error)) from None


def first_core(model: Classifier) -> Attention:
    """The attention of the first layer."""
    return next(module for module in model.modules() if isinstance(module, MultiHead)).attention


def exact_share(trainer: Trainer) -> float | None:
    """The mean share of pairs that a budgeted variant computes exactly: large where documents are short."""
    split = trainer.data.val
    sample = np.arange(min(len(split.labels), 512))
    mask = collate(split, sample, trainer.max_len, mask_zero=trainer.mask_zero).mask.flatten(0, -2)
    if trainer.config.model.pooling == "cls":
        mask = F.pad(mask, (1, 0), value=True)
    share = first_core(trainer.model).share(mask.to(trainer.device))
    return None if share is None else share.mean().item()


def open_view(config: Config, run: RunFolder, about: Mapping[str, Any]) -> Tracker:
    """The tracker that the words ask for, in the process that holds the run's directory."""
    if not isinstance(run, Run):
        return RecordOnly()
    return open_tracker(
        config.tracker,
        Path(config.tracker_dir),
        run_id=run.tracker_id(),
        project="lra",
        group=f"{about['protocol']}/{about['task']}",
        name=f"{about['attn']}/{run.path.name}",
        tags=[about["protocol"], about["task"], about["attn"], about["source"]],
        config=view_config(run.config, about),
        history=list(read_metrics(run.metrics)),
    )


def show_again(config: Config, run: Run, done: dict[str, Any]) -> None:
    """Show a run that ended before to the tracker: an agent of a W&B sweep waits for its numbers."""
    known = {key: value for key, value in done.items() if key not in NOT_SHOWN}
    open_view(config, run, known).finish(summary(done), 0 if done["status"] == "finished" else 1)


def tables_of(trainer: Trainer, test: Scores) -> dict[str, Table]:
    """The tables of the test split, its classes by their names."""
    kind, source = task(trainer.config.task), trainer.config.task["source"]
    names = [kind.class_name(source, label) for label in range(kind.classes)]
    return tables(test.logits, test.labels, np.minimum(trainer.data.test.lengths, trainer.max_len), names)


def announce(trainer: Trainer, about: dict[str, Any]) -> None:
    """Print every choice that a reader of the result may ask for."""
    config, manifest, options, model = trainer.config, trainer.data.manifest, trainer.options, trainer.config.model
    sizes = " / ".join(f"{manifest['splits'][split]['examples']:,}" for split in ("train", "val", "test"))
    chosen = "".join(
        f", {key} {str(value).lower()}"
        for key, value in config.task.items()
        if key not in ("name", "source", "version")
    )
    more = excess(about["params"], about["params_softmax"])
    beyond = f" ({more} over softmax, beyond the benchmark's 10%)" if more else ""
    size = f"{model.layers} layers, dim {model.dim}, {about['params']:,} parameters{beyond}"
    exact = f", {about['exact_share']:.0%} of the real pairs exact" if about["exact_share"] is not None else ""
    pairing = f", pairing {model.pairing}" if trainer.model.pairing else ""
    bias = "" if model.bias else ", no bias in attention"
    schedule = f"{options.steps:,} steps x {options.batch_size}, lr up to {peak(options):.3g} ({options.schedule})"
    first = "0.95 to 0.85 and back" if options.cycle_momentum else "0.9"
    adam = f"betas {first}, {options.beta2:g}, eps {options.eps:g}, weight decay {options.weight_decay:g}"
    clip = f", clip {options.clip:g}" if options.clip else ""
    again = f", going on from step {trainer.state.step:,}" if trainer.state.step else ""
    processes = f", {about['processes']} processes" if about["processes"] > 1 else ""
    print(f"run    {trainer.run.path}{again}")
    print(f"data   {about['task']} ({about['source']}), {sizes} examples, sha256 {about['data_sha256'][:12]}{chosen}")
    print(f"model  {spelled(config.attn)}, protocol {config.protocol}, {size}{exact}")
    print(f"       pooling {model.pooling}, {model.positions} positions, init {model.init}{bias}{pairing}, ", end="")
    print(f"dropout {model.dropout:g}")
    print(f"train  {schedule}, warm-up {options.warmup:,}, padding {options.padding}, seed {config.seed}")
    print(f"       {adam}{clip}; tests the {options.select} weights")
    print(f"on     {about['device']}, {about['dtype']}, kernel {about['kernel'] or 'of torch'}{processes}", flush=True)


def outcome(
    status: str, trainer: Trainer, scores: tuple[Scores, Scores] | None, about: dict[str, Any]
) -> dict[str, Any]:
    """What result.json says."""
    state = trainer.state
    val = {
        "accuracy": max(state.best_accuracy, 0.0),
        "n": len(trainer.data.val.labels),
        "best_step": state.best_step,
    }
    result: dict[str, Any] = {"schema": 1, "status": status, **about, "val": val}
    if scores:
        test, train = scores
        n = len(test.labels)
        ci95 = list(wilson(test.accuracy * n, n))
        result["test"] = {"accuracy": test.accuracy, "loss": test.loss, "n": n, "ci95": ci95, "step": trainer.tested}
        result["train"] = {"accuracy": train.accuracy, "n": len(train.labels)}
    return result | {
        "steps": state.step,
        "tokens_per_s": state.tokens / state.seconds if state.seconds else 0.0,
        "train_seconds": state.seconds,
        "seconds": trainer.wall_seconds(),
        "peak_memory_mb": trainer.peak_memory_mb(),
        "config": identity(trainer.run.config),
    }


def conclude(result: dict[str, Any], trainer: Trainer) -> None:
    """Print the result and what it must be measured against."""
    test, (low, high) = result["test"], result["test"]["ci95"]
    counts = trainer.data.manifest["splits"]["test"]["class_counts"]
    interval = f"95% interval {low:.1%} to {high:.1%} over {test['n']:,} examples"
    speed = f"{result['tokens_per_s']:,.0f} tokens/s, peak {result['peak_memory_mb']:,.0f} MB"
    which = f"at the {trainer.options.select} step {test['step']:,}"
    print(f"test   accuracy {test['accuracy']:.1%}, {interval}, {which}")
    print(f"beside train {result['train']['accuracy']:.1%}, best val {result['val']['accuracy']:.1%}, ", end="")
    print(f"the largest class alone {max(counts) / sum(counts):.1%}")
    print(f"speed  {speed}, {result['train_seconds']:,.0f} s in training steps of {result['seconds']:,.0f} s in all")
    print(f"files  {trainer.run.path / 'result.json'}; make compare sets all runs side by side")
