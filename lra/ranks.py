"""One run on several processes: what torchrun says of them, and every message that they exchange.

Each process takes its share of a step's examples, and the gradients are summed once, after its backward. torch's
DistributedDataParallel sums them during the backward instead: a process that runs out of memory half-way then leaves
the others waiting in theirs, so no step could be repeated in smaller parts; shares would have to be of one size, since
it averages over processes and not over examples; and what it is for, hiding a long exchange behind the backward, saves
little where a model has 0.2 to 10 million weights. After the backward one question settles whether all have their part;
clipping, the scaler and the optimizer then see the same whole gradient everywhere, and the model stays the plain one,
compiled or not.

Questions between processes are a few numbers over gloo, so that no GPU waits for one; gradients and losses go over
nccl between GPUs. A process that is gone closes its connections, and the others leave with Lost.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, ClassVar, NoReturn

from lra.run import Failed
from lra.words import WordError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for one that is silent but not gone.
TIMEOUT = timedelta(minutes=10)
# Before training: another process may be preparing a large data set.
PATIENCE = timedelta(days=1)
# Seconds that a process gives the one that tells an error, see `leave`.
GRACE = 10.0
PATIENT = ("verdict", "send", "told", "end")
TOPICS = (*PATIENT, "step", "signal", "score", "peak", "finite")
WIDTH = 4


class Lost(Failed):
    """Another process of the run is gone or has hung."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run (rank of world) and those on its machine (local of neighbours)."""

    rank: int = 0
    world: int = 1
    local: int = 0
    neighbours: int = 1


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """What torchrun's variables say; without all of them, whatever a cluster has set, a process is alone."""
    if any(not environ.get(name) for name in VARIABLES):
        return Place()
    try:
        rank, world, local, neighbours = (int(environ[name]) for name in VARIABLES[:4])
    except ValueError:
        rank, world, local, neighbours = -1, 0, 0, 0
    if not (0 <= rank < world and 0 <= local < neighbours <= world):
        said = " ".join(f"{name}={environ[name]}" for name in VARIABLES[:4])
        raise WordError(f"{said} are not what torchrun sets")
    return Place(rank, world, local, neighbours) if world > 1 else Place()


def share(indices: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The part of a batch that is one process's: neighbours, so like lengths stay together; sizes differ by one."""
    return indices[len(indices) * rank // world : len(indices) * (rank + 1) // world]


class Ranks:
    """The processes of one run, seen from one of them. This class is a run of one process: it has nobody to ask."""

    def __init__(self, at: Place = Place()) -> None:
        self.rank, self.world, self.place = at.rank, at.world, at
        self.flat: Tensor | None = None

    # What several processes do in a way of their own.

    def gather(self, topic: str, *values: float) -> list[tuple[float, ...]]:
        """The values of every process, in the order of ranks. All must be at the same one of TOPICS, or it is Lost."""
        return [values]

    def add(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over the processes, the same bits on each."""

    def broadcast(self, tensor: Tensor) -> None:
        """Replace `tensor`, on the CPU, by the first process's."""

    def connect(self, device: torch.device) -> None:
        """Choose the way of the gradients for `device`."""

    # What follows from it.

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """This process's part of a batch."""
        return share(indices, self.rank, self.world)

    def largest(self, topic: str, value: float) -> float:
        """The largest of all processes' values."""
        return max(row[0] for row in self.gather(topic, value))

    def told(self, value: bool) -> bool:
        """The first process's value."""
        return bool(self.gather("told", value)[0][0])

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """A part that every process must get through; what may fail on one alone sends no message in it.

        Where one fails, all end with its exit code: the first that failed by its error, the others in silence.
        """
        if self.world == 1:
            yield
            return
        failure: BaseException | None = None
        try:
            yield
        except Lost:
            raise
        except (Exception, SystemExit) as error:
            failure = error
        codes = [int(row[0]) for row in self.gather("verdict", exit_code(failure))]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed == self.rank and failure:
            raise failure
        if failed is not None:
            leave(codes[failed])

    def from_first(self, read: Callable[[], bytes | None]) -> bytes | None:
        """What `read` gives on the first process, on every one."""
        if self.world == 1:
            return read()
        data = None
        with self.agreeing():
            data = read() if self.first else None
        return self.send(data)

    def send(self, data: bytes | None) -> bytes | None:
        """The first process's `data`, on every one."""
        import torch

        size = int(self.gather("send", -1 if data is None else len(data))[0][0])
        if size < 0:
            return None
        buffer = torch.empty(size, dtype=torch.uint8)
        if data and self.first:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.broadcast(buffer)
        return buffer.numpy().tobytes()

    def demand_same(self, facts: Mapping[str, object], kind: type[ValueError] = ValueError) -> None:
        """Raise `kind` naming the first of `facts` that is not the same on every process."""
        if self.world == 1:
            return
        mine = {key: json.loads(json.dumps(value)) for key, value in facts.items()}
        theirs = json.loads(self.send(json.dumps(mine).encode()) or b"{}")
        with self.agreeing():
            for key in sorted(mine.keys() | theirs.keys()):
                if mine.get(key) != theirs.get(key):
                    raise kind(
                        f"{key} must be the same on every process: {theirs.get(key)} on the first, "
                        f"{mine.get(key)} on process {self.rank} of {self.world}"
                    )

    def equalize(self, model: nn.Module) -> None:
        """Give `model` the first process's parameters and buffers, and make room for its gradients."""
        if self.world == 1:
            return
        import torch

        tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        file = io.BytesIO()
        torch.save([tensor.cpu() for tensor in tensors], file)
        theirs = torch.load(io.BytesIO(self.send(file.getvalue()) or b""), weights_only=True)
        for tensor, value in zip(tensors, theirs, strict=True):
            tensor.copy_(value)
        # Made before it is needed, so that no process runs out of memory while the others are already adding.
        self.flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum each gradient over the processes, all in one message."""
        if self.flat is None:
            return
        import torch

        trained = list(parameters)
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
        torch.cat([part.flatten() for part in parts], out=self.flat)
        self.add(self.flat)
        for each, part in zip(trained, self.flat.split([each.numel() for each in trained]), strict=True):
            each.grad = part.view_as(each)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let the first process alone print, and say who is Lost; what another one raises of its own is still told."""
        with ExitStack() as stack:
            if not self.first:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            try:
                yield
            except Lost:
                if self.first:
                    raise
                leave(1)


class Processes(Ranks):
    """The processes that torchrun started; making it waits for all of them."""

    joined: ClassVar[bool] = False

    def __init__(self, at: Place) -> None:
        super().__init__(at)
        import torch.distributed as dist

        self.dist = dist
        with connected():
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=TIMEOUT)
            self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.swift = dist.group.WORLD
        Processes.joined = True

    def gather(self, topic: str, *values: float) -> list[tuple[float, ...]]:
        import torch

        row = torch.zeros(WIDTH, dtype=torch.float64)
        row[: 1 + len(values)] = torch.tensor([TOPICS.index(topic), *values], dtype=torch.float64)
        rows = [torch.empty_like(row) for _ in range(self.world)]
        with connected():
            self.dist.all_gather(rows, row, group=self.patient if topic in PATIENT else None)
        found = [each.tolist() for each in rows]
        if any(each[0] != row[0] for each in found):
            raise Lost("the processes of this run are not at the same point")
        return [tuple(each[1 : 1 + len(values)]) for each in found]

    def add(self, tensor: Tensor) -> None:
        with connected():
            self.dist.all_reduce(tensor, group=self.swift)

    def broadcast(self, tensor: Tensor) -> None:
        with connected():
            self.dist.broadcast(tensor, 0, group=self.patient)

    def connect(self, device: torch.device) -> None:
        if device.type != "cuda":
            return
        import torch

        torch.cuda.set_device(device)
        with connected():
            self.swift = self.dist.new_group(backend="nccl", timeout=TIMEOUT)


# A run of one process.
ALONE = Ranks()


def join(at: Place) -> Ranks:
    """The processes of the run, all of them there."""
    return Processes(at) if at.world > 1 else ALONE


@contextmanager
def connected() -> Iterator[None]:
    """Let torch's errors over a message be Lost."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        line = f"no word from the other processes of this run ({said[0]})"
        if any(word in said[0].lower() for word in ("closed", "reset", "broken pipe")):
            line = "another process of this run is gone"
        elif "timed out" in said[0].lower():
            line = "another process of this run hangs"
        raise Lost(line) from error


def exit_code(failure: BaseException | None) -> int:
    """What a process that ends by `failure` exits with; 0 where it goes on."""
    if isinstance(failure, SystemExit):
        return failure.code if isinstance(failure.code, int) and failure.code else 1
    return 0 if failure is None else 2 if isinstance(failure, WordError) else 1


def let_first_tell(code: int) -> None:
    """Where processes that know nothing of each other fail: all have the same words, the first of a machine says it."""
    with suppress(WordError):
        if place().local and not Processes.joined:
            stand_by(code)


def stand_by(code: int) -> None:
    """Wait until torchrun ends this process, which then exits with `code`, or GRACE seconds have passed.

    torchrun ends all processes as soon as one has failed: one that knows of an error must not go before the one that
    has yet to print it.
    """

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(code)

    signal.signal(signal.SIGTERM, end)
    time.sleep(GRACE)


def leave(code: int) -> NoReturn:
    """End this process in silence, after the one that tells why."""
    stand_by(code)
    sys.exit(code)
