"""Where the time of a training step goes: torch's profile of it, summed by part of the model.

An operator belongs to the part whose module called it, one of the backward pass to the part of the operator whose
gradient it computes. What belongs to no operator, such as Python itself, is host work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn
    from torch.autograd.profiler_util import FunctionEvent

    from lra.model import Classifier

PARTS = (
    "embedding",
    "projections",
    "attention: choice of pairs",
    "attention: itself",
    "attention: layout and padding",
    "feed-forward: products",
    "feed-forward: GELU",
    "norms",
    "dropout",
    "residuals and sums",
    "pooling and head",
    "loss",
    "optimizer",
    "host work",
)
# Operators that are a part wherever they are called.
OPERATORS = {
    "zoo::block_logits": "attention: choice of pairs",
    "zoo::choose_blocks": "attention: choice of pairs",
    "zoo::coarse_attention": "attention: itself",
    "zoo::block_sparse_attention": "attention: itself",
    "aten::scaled_dot_product_attention": "attention: itself",
    "aten::cross_entropy_loss": "loss",
    "Optimizer.step": "optimizer",
    "Optimizer.zero_grad": "optimizer",
}
MARK = "part: "
ENGINE = "autograd::engine::evaluate_function: "


class Share(NamedTuple):
    """Milliseconds a step of one part, and of its operators by name."""

    ms: float
    operators: Mapping[str, float]


def part_of(name: str, module: nn.Module) -> str | None:
    """The part that a module of the model is, by its dotted name; None: that of the module around it."""
    from torch import nn

    from lra.model import Block, Classifier, Encoder, MultiHead

    kinds = {
        nn.Dropout: "dropout",
        nn.LayerNorm: "norms",
        nn.GELU: "feed-forward: GELU",
        nn.Embedding: "embedding",
        MultiHead: "attention: layout and padding",
        Block: "residuals and sums",
        Encoder: "residuals and sums",
        Classifier: "pooling and head",
    }
    for kind, part in kinds.items():
        if isinstance(module, kind):
            return part
    if isinstance(module, nn.Linear) and ".attention." not in name:
        return "projections" if ".attend." in name else "feed-forward: products" if ".think." in name else None
    return None


@contextmanager
def marked(model: Classifier) -> Iterator[None]:
    """Within this context the model tells the profiler in which part it is."""
    from torch.profiler import record_function

    open_marks: list[Any] = []

    def enter(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            open_marks.append(record_function(MARK + part))
            open_marks[-1].__enter__()

        return hook

    def leave(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    handles = []
    for name, module in model.named_modules():
        if part := part_of(name, module):
            handles += [module.register_forward_pre_hook(enter(part)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shares(model: Classifier, step: Callable[[], None], steps: int) -> dict[str, Share]:
    """Profile so many steps, after one that is not counted."""
    from torch.profiler import ProfilerActivity, profile

    with marked(model):
        step()
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
            for _ in range(steps):
                step()
    return sums(found.events() or [], steps)


def sums(events: list[FunctionEvent], steps: int) -> dict[str, Share]:
    """The milliseconds of each part a step, from all events of so many of them."""
    # The last operator that began at an autograd node's number is the one that made the node.
    makers = {
        event.sequence_nr: event
        for event in sorted(events, key=lambda event: event.time_range.start)
        if event.sequence_nr >= 0 and _node(event) is None
    }
    operators: dict[str, dict[str, float]] = {part: defaultdict(float) for part in PARTS}
    for event in events:
        node = _node(event)
        maker = makers.get(node.sequence_nr) if node else None
        part = _part(event) or (_part(maker) if maker else None)
        # The time of a mark itself, and of a node of autograd itself, is that of Python and of the engine.
        own = event.name.startswith((MARK, ENGINE))
        name = "marks" if event.name.startswith(MARK) else "autograd" if own else event.name
        operators["host work" if own else part or "host work"][name] += event.self_cpu_time_total / 1e3 / steps
    return {part: Share(sum(times.values()), dict(times)) for part, times in operators.items()}


def _around(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """An event and those that it is within, outwards."""
    found: FunctionEvent | None = event
    while found is not None:
        yield found
        found = found.cpu_parent


def _node(event: FunctionEvent) -> FunctionEvent | None:
    """The node of autograd's backward pass that an event belongs to."""
    return next((each for each in _around(event) if each.name.startswith(ENGINE)), None)


def _part(event: FunctionEvent) -> str | None:
    """The part that an event, or one that it is within, belongs to by its name."""
    for each in _around(event):
        if each.name.startswith(MARK):
            return each.name.removeprefix(MARK)
        for prefix, part in OPERATORS.items():
            if each.name.startswith(prefix):
                return part
    return None
