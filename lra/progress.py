"""What a person sees of a run under way: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds of an evaluation after which plain lines say how far it is.
SILENCE = 30.0


class Display:
    """Shows records as they are logged. Use it as a context manager around the loop."""

    def __init__(self, steps: int, done: int, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.steps, self.first, self.began = steps, done, time.monotonic()
        self.said = self.began
        self.bar: Progress | None = None
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TextColumn("left"), TimeRemainingColumn(compact=True), console=self.console,
            )  # fmt: skip
            self.task = self.bar.add_task("train", total=steps, completed=done, facts="")

    def __enter__(self) -> Display:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int) -> None:
        """Move the bar; a terminal shows every step."""
        if self.bar:
            self.bar.update(self.task, description="train", completed=step)

    def train(self, record: Mapping[str, Any]) -> None:
        """Show a logged window of training steps."""
        facts = (
            f"loss {record['loss']:.3f}  acc {record['accuracy']:.1%}  "
            f"{record['tokens_per_s']:,.0f} tok/s  {record['peak_memory_mb']:,.0f} MB"
        )
        if self.bar:
            self.bar.update(self.task, completed=record["step"], facts=facts)
        else:
            self.say(f"step {record['step']}/{self.steps}  {facts}  left {self.left(record['step'])}")

    def evaluation(self, record: Mapping[str, Any], best: bool) -> None:
        """Show an evaluation; it stays above the bar."""
        self.say(
            f"step {record['step']}/{self.steps}  {record['split']} loss {record['loss']:.3f}  "
            f"acc {record['accuracy']:.1%}{'  (best so far)' if best else ''}"
        )

    def scored(self, name: str, done: int, total: int) -> None:
        """Show how many examples of an evaluation are done: on a bar at once, in a plain line only now and then."""
        if self.bar:
            self.bar.update(self.task, description=f"{name} {done / total:.0%}")
        elif time.monotonic() - self.said >= SILENCE:
            self.say(f"{name}  {done:,} of {total:,} examples")

    def say(self, line: str) -> None:
        """One line of plain text."""
        self.said = time.monotonic()
        self.console.print(line, markup=False)

    def left(self, step: int) -> str:
        """Time left as h:mm:ss, from the pace of this process so far, evaluations included."""
        pace = (time.monotonic() - self.began) / max(step - self.first, 1)
        seconds = round(pace * (self.steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
