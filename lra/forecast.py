"""What torch alone can say of a run before it starts: its size, where it would go on, whether its kernel is there.

For a process of its own, so that a sweep's keeps neither torch nor models.
"""

from __future__ import annotations

from pathlib import Path

from attention_zoo.ops import kernels
from lra import checkpoint, machine
from lra.config import Config
from lra.files import spare
from lra.loop import build
from lra.model import Classifier, parameter_count
from lra.session import kernel_of
from lra.tasks import task
from lra.words import WordError


def ready() -> None:
    """Nothing: whoever asks has torch in memory."""


def size(config: Config) -> int:
    """The parameters of a run's model; a WordError where its words make none."""
    return parameter_count(model(config))


def model(config: Config) -> Classifier:
    """The model of a run, for the data of its task as they are everywhere."""
    facts = task(config.task)
    return build(config, len(facts.vocabulary), facts.classes, facts.paired)


def step(last: Path) -> int:
    """The step that a run goes on from, 0 where neither its last checkpoint nor the spare can be read."""
    return checkpoint.look(last, checkpoint.LAST).step or checkpoint.look(spare(last), checkpoint.LAST).step


def kernel(config: Config) -> str:
    """Compile the kernel of a run where it is missing; the line that says why it cannot run, or nothing."""
    try:
        with kernels.use(config.kernel):
            kernel_of(model(config), machine.pick_device(config.device))
    except (WordError, ValueError) as error:
        return str(error)
    return ""
