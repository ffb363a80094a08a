"""How training ends before its last step: the exceptions that say so, and the signals that ask for it."""

from __future__ import annotations

import signal
from types import FrameType

from lra.run import STOPS


class Stopped(Exception):
    """A signal of STOPS was answered with everything saved; `signum` says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Diverged(Exception):
    """A loss, a weight or what the optimizer keeps stopped being a finite number at `step`; `why` says which."""

    def __init__(self, step: int, why: str = "the loss is not finite") -> None:
        super().__init__(step, why)
        self.step = step
        self.why = why


class OutOfMemory(Exception):
    """The device has no room for a batch; the message says what to change."""


class Short(Exception):
    """A process has no memory for its part of a step; nobody has made the step."""


class StopSignal:
    """Turns a signal of STOPS into a request that the loop answers between two steps. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signum = 0
        for signum in STOPS:
            signal.signal(signum, self.ask)

    def ask(self, signum: int, frame: FrameType | None) -> None:
        # Of the others several may come for one stop: Slurm sends SIGTERM twice, and some time after SIGUSR2.
        if self.signum and signum == signal.SIGINT:
            raise SystemExit(128 + signum)
        self.signum = self.signum or signum
