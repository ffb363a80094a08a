"""The loop: build a model, train it, and be able to stop at any instant."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra import checkpoint, machine
from lra.attention import attention
from lra.config import Config
from lra.data import Batch, Data, Sampler, Split, collate
from lra.endings import Diverged, OutOfMemory, Short, Stopped, StopSignal
from lra.evaluation import Scores, evaluate, head, to_device
from lra.files import spare, write_atomically
from lra.model import Classifier, transformer
from lra.progress import Display
from lra.ranks import ALONE, Ranks
from lra.run import RunFolder
from lra.schedule import beta1, rate
from lra.tracker import Metrics, Tracker
from lra.words import WordError


def build(config: Config, vocab: int, classes: int, pairs: bool = False) -> Classifier:
    """The model of a configuration; a parameter that the attention class does not have, or refuses, is a WordError.

    pairs: an example is two documents.
    """
    size = config.model
    core = attention(config.attn, size.heads, size.head_dim, size.seq_len + (size.pooling == "cls"))
    torch.manual_seed(derived_seed(config.seed, "weights"))
    try:
        return transformer(core, size, vocab, classes, pairs)
    except (ValueError, TypeError) as error:
        raise WordError(f"attn={config.attn['name']}: {error}") from error
    except RuntimeError as error:
        if not machine.is_out_of_memory(error):
            raise
        words = " ".join(
            f"model.{key}={getattr(size, key)}" for key in ("layers", "dim", "heads", "head_dim", "ffn", "seq_len")
        )
        raise WordError(f"there is no memory for a model of {words} and attn={config.attn['name']}") from None


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number in `tensors` is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def derived_seed(seed: int, purpose: object) -> int:
    """A seed of its own for each purpose, so that no stream of random numbers depends on how many another has drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")


@dataclass
class State:
    """What a resumed run needs beside weights and optimizer; batches and dropout are functions of seed and step.

    `seconds` are those in training steps, `wall_seconds` all that the run has taken, evaluations included.
    """

    step: int = 0
    evaluated: int = 0
    best_step: int = 0
    best_accuracy: float = -1.0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    tokens: int = 0
    micro_batch: int = 0
    metrics_bytes: int = 0
    lr: float = 0.0
    losses: list[float] = field(default_factory=list)
    hits: float = 0.0
    window_seconds: float = 0.0
    window_tokens: int = 0
    window_examples: int = 0


class Trainer:
    """One run: its model, optimizer, data and state, and the loop over them."""

    def __init__(
        self,
        config: Config,
        model: Classifier,
        data: Data,
        run: RunFolder,
        device: torch.device,
        dtype: torch.dtype,
        stop: StopSignal,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.options, self.data, self.run = config, config.train, data, run
        self.device, self.dtype, self.stop, self.ranks = device, dtype, stop, ranks
        self.model = model.to(device)
        ranks.equalize(self.model)
        self.forward: nn.Module = torch.compile(self.model) if self.options.compile else self.model  # type: ignore[assignment]
        self.max_len = min(data.manifest["max_len"], config.model.seq_len)
        self.mask_zero = config.task.get("mask_zero_pixels", False)
        lengths = np.minimum(data.train.lengths, self.max_len)
        self.sampler = Sampler(lengths, self.options.batch_size, config.seed)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.options.lr,
            weight_decay=self.options.weight_decay,
            eps=self.options.eps,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        whole = self.options.micro_batch == "auto"
        self.state = State(micro_batch=self.options.batch_size if whole else self.options.micro_batch)
        self.pending: list[Tensor] = []
        self.clock = time.perf_counter()
        self.resume()
        self.metrics = Metrics(run.metrics, keep=self.state.metrics_bytes) if ranks.first else None
        if self.metrics:
            run.last.parent.mkdir(exist_ok=True)

    def close(self) -> None:
        """Let go of metrics.jsonl."""
        if self.metrics:
            self.metrics.close()

    def train(self, tracker: Tracker, display: Display) -> None:
        """Run to the last step. Leaves by Stopped, Diverged or OutOfMemory, each with the last good state on disk."""
        self.tracker, self.display = tracker, display
        state, options = self.state, self.options
        self.model.train()
        while True:
            if state.step and state.evaluated < state.step and self.due(options.eval_every):
                self.validate()
            if state.step == options.steps:
                return
            began = time.perf_counter()
            self.update(self.sampler.batch(state.step))
            state.step += 1
            if self.due(options.log_every):
                self.settle()
            self.spend(time.perf_counter() - began)
            if self.due(options.log_every):
                self.log()
            display.step(state.step)
            # Read once: a signal that comes while this step is being saved is answered after the next one.
            signum = self.asked()
            if signum or self.due(options.checkpoint_every):
                self.save()
            if signum:
                raise Stopped(signum)

    def due(self, every: int) -> bool:
        """Every so many steps, and at the last one."""
        return self.state.step % every == 0 or self.state.step == self.options.steps

    def asked(self) -> int:
        """The signal that a process of the run has been sent, the same answer on each; 0 is none."""
        return int(self.ranks.largest("signal", self.stop.signum))

    def update(self, indices: np.ndarray) -> None:
        """One optimizer step. Where memory runs out and `micro_batch` is auto, the same step again in smaller parts."""
        share = -(-len(indices) // self.ranks.world)
        while True:
            try:
                self.learn(indices)
                return
            except Short:
                self.state.micro_batch = min(self.state.micro_batch, share)
                if self.options.micro_batch != "auto" or self.state.micro_batch == 1:
                    raise OutOfMemory(self.remedy()) from None
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()
            self.state.micro_batch = (self.state.micro_batch + 1) // 2
            self.display.say(
                f"out of memory: going on with {self.state.micro_batch} examples at once, the batch stays the same"
            )

    def remedy(self) -> str:
        half = max(self.state.micro_batch // 2, 1)
        parts = f"train.micro_batch={half} computes the same in smaller parts"
        return f"no memory for {self.state.micro_batch} examples at once; {parts}"

    def learn(self, indices: np.ndarray) -> None:
        """Forward, backward, clip, step. Short where memory ran out, on whichever process: then none made the step."""
        self.schedule()
        total, tokens = torch.zeros(2, dtype=torch.float64, device=self.device), 0
        short = False
        try:
            tokens = self.differentiate(self.ranks.share(indices), len(indices), total)
        except RuntimeError as error:
            if not machine.is_out_of_memory(error):
                raise
            short = True
        told = self.ranks.gather("step", short, tokens)
        if any(row[0] for row in told):
            raise Short
        self.ranks.add_gradients(self.model.parameters())
        if self.options.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.pending.append(total)
        self.count(len(indices), sum(int(row[1]) for row in told))

    def differentiate(self, indices: np.ndarray, batch_size: int, total: Tensor) -> int:
        """Add this process's part of a batch to the gradients, and its loss and hits to `total` (2,); its real tokens.

        Dropout is seeded by the step: it repeats whatever came before it. Each process has a stream of its own.
        """
        rank = f" rank {self.ranks.rank}" if self.ranks.rank else ""
        torch.manual_seed(derived_seed(self.config.seed, f"step {self.state.step}{rank}"))
        tokens = 0
        for here in self.parts(indices):
            tokens += int(here.mask.sum())
            part = to_device(here, self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits = self.forward(part.tokens, part.mask).float()
            loss = F.cross_entropy(logits, part.labels, reduction="sum") / batch_size
            self.scaler.scale(loss).backward()
            hits = (logits.argmax(1) == part.labels).sum()
            total += torch.stack([loss.detach().double(), hits.double()])
        return tokens

    def schedule(self) -> None:
        """Set the learning rate and beta1 of this step."""
        self.state.lr = rate(self.options, self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = self.state.lr, (beta1(self.options, self.state.step), self.options.beta2)

    def parts(self, indices: np.ndarray) -> Iterator[Batch]:
        """The batch, cut to `micro_batch` examples."""
        pad_to = self.config.model.seq_len if self.options.padding == "fixed" else None
        for start in range(0, len(indices), self.state.micro_batch):
            part = indices[start : start + self.state.micro_batch]
            yield collate(self.data.train, part, self.max_len, pad_to, self.mask_zero)

    def count(self, examples: int, tokens: int) -> None:
        """Book the examples and real tokens of a step."""
        self.state.window_examples += examples
        self.state.window_tokens += tokens
        self.state.tokens += tokens

    def spend(self, seconds: float) -> None:
        self.state.seconds += seconds
        self.state.window_seconds += seconds

    def wall_seconds(self) -> float:
        """What this run has taken so far over all its starts; a killed one forgets what came after its checkpoint."""
        now = time.perf_counter()
        self.state.wall_seconds += now - self.clock
        self.clock = now
        return self.state.wall_seconds

    def settle(self) -> None:
        """Fetch the losses that are still on the device; the first one that is not finite ends the run."""
        if not self.pending:
            return
        sums = torch.stack(self.pending)
        self.ranks.add(sums)
        rows = sums.tolist()
        first = self.state.step - len(rows) + 1
        self.pending.clear()
        for step, (loss, hits) in enumerate(rows, first):
            if not math.isfinite(loss):
                raise Diverged(step)
            self.state.losses.append(loss)
            self.state.hits += hits

    def log(self) -> None:
        """Record the window since the last log."""
        state = self.state
        record = {
            "step": state.step,
            "split": "train",
            "loss": math.fsum(state.losses) / len(state.losses),
            "accuracy": state.hits / state.window_examples,
            "lr": state.lr,
            "tokens_per_s": state.window_tokens / state.window_seconds,
            "peak_memory_mb": self.peak_memory_mb(),
        }
        state.losses, state.hits = [], 0.0
        state.window_seconds, state.window_tokens, state.window_examples = 0.0, 0, 0
        self.record(record)
        self.display.train(record)

    def peak_memory_mb(self) -> float:
        """Peak of the process of this run that needed the most memory, in MiB; all processes ask at once."""
        return self.ranks.largest("peak", machine.peak_memory_mb(self.device))

    def record(self, record: dict[str, Any]) -> None:
        self.run.demand()
        record = {**record, "steps": self.options.steps, "seconds": round(self.wall_seconds(), 3)}
        if self.metrics:
            self.metrics.write(record)
        self.tracker.log(record["step"], record)

    def score(self, split: Split, name: str) -> Scores:
        """Score a split that the display calls `name`; a signal is answered between two batches."""

        def each(done: int) -> None:
            if signum := self.asked():
                raise Stopped(signum)
            self.display.scored(name, done, len(split.labels))

        size, ranks = self.options.batch_size, self.ranks
        dtype, zero = self.dtype, self.mask_zero
        scores = evaluate(self.model, split, self.max_len, size, self.device, dtype, zero, each, ranks)
        # A row that is not finite has a largest class too: it would count as an answer.
        if not math.isfinite(scores.loss):
            raise Diverged(self.state.step, f"the loss of {name} is not finite")
        return scores

    def validate(self) -> None:
        """Score the validation split; strictly better than ever before is the best, and kept if it is to be tested."""
        self.settle()
        self.demand_finite()
        try:
            scores = self.score(self.data.val, "val")
        except Stopped:
            self.save()
            raise
        best = scores.accuracy > self.state.best_accuracy
        if best:
            self.state.best_step, self.state.best_accuracy = self.state.step, scores.accuracy
        if best and self.options.select == "best" and self.ranks.first:
            best_state = {"step": self.state.step, "model": self.model.state_dict()}
            checkpoint.save(self.run.best, best_state, self.run.demand)
        self.state.evaluated = self.state.step
        record = {"step": self.state.step, "split": "val", "loss": scores.loss, "accuracy": scores.accuracy}
        self.record(record)
        self.display.evaluation(record, best)
        self.save()
        # Its second copy is the best of before until the last checkpoint knows of the new one.
        if best and self.ranks.first:
            self.best()

    def demand_finite(self) -> None:
        """Diverged where a weight or what the optimizer keeps is not finite on a process, before anything is kept."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        faults = (
            ("a weight is not finite", not all_finite(self.model.parameters())),
            ("the optimizer's state is not finite", not all_finite(kept)),
            ("the loss scale has fallen to 0", self.scaler.get_scale() == 0),
        )
        told = self.ranks.gather("finite", *(found for _, found in faults))
        for fault, (why, _) in enumerate(faults):
            if any(row[fault] for row in told):
                raise Diverged(self.state.step, why)

    def save(self) -> None:
        """Write the last checkpoint; state that is not finite is never written over a good one."""
        self.settle()
        self.demand_finite()
        if not self.metrics:
            return
        self.metrics.sync()
        self.state.metrics_bytes = self.metrics.position
        self.wall_seconds()
        checkpoint.save(
            self.run.last,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "state": asdict(self.state),
                "data_sha256": self.data.manifest["sha256"],
            },
            self.run.demand,
            keep=spare(self.run.last),
        )

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one; it must be of the same data."""
        saved = self.read(self.run.last, lambda: checkpoint.last(self.run.last))
        if not saved:
            return
        if saved.get("data_sha256") != self.data.manifest["sha256"]:
            raise ValueError(
                f"{self.run.last} was trained on other data than {self.config.data_dir} holds; fresh=true starts over"
            )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        micro = self.state.micro_batch
        # An older checkpoint knows its time in training steps alone.
        self.state = State(**{"wall_seconds": saved["state"]["seconds"]} | saved["state"])
        if self.options.micro_batch != "auto":
            self.state.micro_batch = micro
        # Now, and not after hours of training, a run hears that what it is to test is lost.
        with self.ranks.agreeing():
            if self.ranks.first:
                self.best(self.state.evaluated)

    def best(self, evaluated: int | None = None) -> bytes | None:
        """The weights of the best step, both copies of them whole, where they are to be tested (checkpoint.best)."""
        if self.options.select != "best" or not self.state.best_step:
            return None
        return checkpoint.best(self.run.best, self.state.best_step, evaluated, self.run.demand)

    def read(self, path: Path, find: Callable[[], bytes | None]) -> dict[str, Any]:
        """The checkpoint that the first process finds, at `path` or its spare, on each; empty where it finds none."""
        content = self.ranks.from_first(find)
        saved = {}
        with self.ranks.agreeing():
            saved = checkpoint.parse(content, path, self.device) if content is not None else {}
        return saved

    @property
    def tested(self) -> int:
        """The step whose weights are tested: the best validation's, or the last."""
        return self.state.best_step if self.options.select == "best" else self.state.step

    def conclude(self) -> tuple[Scores, Scores]:
        """Score the weights of `tested`: the whole test split, and as many training examples as validation has."""
        if self.options.select == "best":
            self.model.load_state_dict(self.read(self.run.best, self.best)["model"])
        seen = head(self.data.train, len(self.data.val.labels))
        return self.score(self.data.test, "test"), self.score(seen, "train again")

    def write_predictions(self, test: Scores) -> None:
        """Write predictions.npz for the test split: logits (E, classes), predictions and labels (E,), in its order."""
        arrays = {"logits": test.logits, "predictions": test.logits.argmax(1), "labels": test.labels}
        write_atomically(self.run.path / "predictions.npz", lambda file: np.savez(file, **arrays), self.run.demand)
