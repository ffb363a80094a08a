"""The real trainer of a run's words, on the task's data or on random ones, with a clock on each phase of its steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lra import data

if TYPE_CHECKING:
    import numpy as np

    from lra.config import Config
    from lra.loop import Trainer

POOL = 50
PHASES = ("data", "forward", "backward", "optimizer", "rest")


def composed(words: Sequence[str]) -> Config:
    """The configuration that a run of these words has."""
    import hydra
    from omegaconf import OmegaConf

    from lra.config import Config
    from lra.train import CONF, store_schema

    store_schema()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(hydra.compose("config", overrides=list(words)))
    assert isinstance(config, Config), "the schema makes the root a Config"
    return config


def prepared(config: Config) -> tuple[data.Data, str]:
    """The task's data and what they are: its prepared ones, or documents of random tokens where there are none."""
    from lra.tasks import task

    facts, source = task(config.task), config.task["source"]
    if (data.folder(config.data_dir, facts, source) / "manifest.json").exists():
        return data.load(config.data_dir, facts, source), source
    return random_documents(facts, config.train.batch_size * POOL, pairs=facts.name == "retrieval"), "random"


def random_documents(facts: Any, examples: int, pairs: bool) -> data.Data:
    """Documents of a quarter to the whole of a task's longest, as ListOps has them; pictures are all of one size."""
    import numpy as np

    draws = np.random.default_rng(0)
    shortest = facts.max_len if facts.kind == "pixels" else facts.max_len // 4
    lengths = draws.integers(shortest, facts.max_len, examples, endpoint=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = draws.integers(1, len(facts.vocabulary), offsets[-1]).astype(np.uint8)
    labels = draws.integers(0, facts.classes, examples).astype(np.uint8)
    both = draws.integers(0, examples, (examples, 2)).astype(np.int32) if pairs else None
    split = data.Split(tokens, offsets, labels, both)
    manifest = {
        "max_len": facts.max_len, "classes": facts.classes, "sha256": "", "vocabulary": list(facts.vocabulary),
        "kind": facts.kind,
    }  # fmt: skip
    return data.Data(manifest, split, split, split)


class Bench:
    """The trainer of one configuration, and the clocks of its phases."""

    def __init__(self, config: Config, folder: Path, found: tuple[data.Data, str] | None = None) -> None:
        """found: the data and what they are, where they are not those that `prepared` finds."""
        import torch

        from attention_zoo.ops import kernels
        from lra.endings import StopSignal
        from lra.loop import Trainer
        from lra.machine import pick_device, pick_dtype
        from lra.run import Run
        from lra.session import model_of

        self.data, self.source = found or prepared(config)
        device = pick_device(config.device)
        kernels.prepare(device)
        # As a run sets it.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        asked = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        dtype = pick_dtype(config.train.dtype, device)
        run = Run(folder, asdict(config))
        self.trainer: Trainer = Trainer(
            config, model_of(config, self.data), self.data, run, device, dtype, StopSignal()
        )
        # A trainer answers signals after its steps; a benchmark ends at once.
        for signum, handler in asked.items():
            signal.signal(signum, handler)
        self.trainer.model.train()
        self.marks: dict[str, float] = {}
        self.watch()

    def close(self) -> None:
        self.trainer.close()
        self.trainer.run.close()

    def watch(self) -> None:
        """Note on the way when each phase of a step begins and ends."""
        trainer, now = self.trainer, time.perf_counter
        forward, parts = trainer.forward, trainer.parts

        def timed_parts(indices: np.ndarray) -> Iterator[Any]:
            batches = iter(parts(indices))
            while True:
                began = now()
                batch = next(batches, None)
                self.marks["data"] = self.marks.get("data", 0.0) + now() - began
                if batch is None:
                    return
                yield batch
                # The loop comes back when the part's backward pass is over.
                self.marks["backward"] = self.marks.get("backward", 0.0) + now() - self.marks["forwarded"]

        def timed_forward(*given: Any) -> Any:
            began = now()
            out = forward(*given)
            self.marks["forwarded"] = now()
            self.marks["forward"] = self.marks.get("forward", 0.0) + self.marks["forwarded"] - began
            return out

        def begin(*_: Any) -> None:
            self.marks["stepping"] = now()

        def end(*_: Any) -> None:
            self.marks["optimizer"] = now() - self.marks["stepping"]

        trainer.parts, trainer.forward = timed_parts, timed_forward  # type: ignore[method-assign,assignment]
        trainer.optimizer.register_step_pre_hook(begin)
        trainer.optimizer.register_step_post_hook(end)

    def batch(self) -> np.ndarray:
        """The batch whose longest document is the median of the first batches."""
        batches = [self.trainer.sampler.batch(step) for step in range(POOL)]
        return sorted(batches, key=lambda batch: int(self.trainer.sampler.lengths[batch].max()))[POOL // 2]

    def step(self, indices: np.ndarray) -> dict[str, float]:
        """Learn from a batch; milliseconds of each phase, of all of it and of the processor."""
        self.marks.clear()
        began, busy = time.perf_counter(), time.process_time()
        self.trainer.learn(indices)
        whole, busy = time.perf_counter() - began, time.process_time() - busy
        self.trainer.pending.clear()
        phases = {phase: self.marks.get(phase, 0.0) for phase in PHASES}
        phases["rest"] = whole - sum(phases.values())
        return {name: 1e3 * seconds for name, seconds in {**phases, "step": whole, "processor": busy}.items()}
