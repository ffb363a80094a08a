"""One run on several processes is the run on one: the same losses, and what befalls one befalls all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lra.config import Config
from lra.data import Data
from lra.endings import Diverged
from lra.loop import Trainer
from tests.faults import amount, draws
from tests.faults.trials import (
    VARIANTS,
    Ended,
    at_step,
    configured,
    cores,
    data_for,
    demand_finite_files,
    paired,
    start,
)  # fmt: skip
from tests.test_ranks import together


def still(trainer: Trainer) -> None:
    """Let the variants use what they drew when they were built: in training each process draws for itself."""
    for core in cores(trainer.model):
        core.eval()
        core.train = lambda mode=True, core=core: core  # type: ignore[method-assign, misc]


def on(
    world: int, given: Config, data: Data, folder: Path, prepare: Callable[[Trainer], object] = still
) -> list[Ended]:
    """The run on so many processes; what each says of its end."""
    ends = together(world, lambda group: start(given, data, folder, prepare, group))
    errors = [end for end in ends if not isinstance(end, Ended)]
    assert not errors
    return ends


def losses(ended: Ended) -> np.ndarray:
    return np.array([record["loss"] for record in ended.records])


@pytest.mark.parametrize("variant", draws("worlds").sample(list(VARIANTS), amount(1, len(VARIANTS))))
def test_the_losses_of_every_variant_are_those_of_one_process_up_to_rounding(
    tmp_path: Path, tally: Counter[str], variant: str
) -> None:
    """Batches that do not divide evenly, documents of one token among them; also pairs of documents."""
    for way in ("documents", "pairs")[: amount(1, 2)]:
        data = data_for(variant) if way == "documents" else paired(data_for(variant))

        def trained(name: str, world: int, **train: Any) -> list[Ended]:
            given = configured(variant, batch_size=7, clip=0.5, **train)
            return on(world, given, data, tmp_path / f"{way} {name}")  # noqa: B023

        whole = losses(trained("whole", 1)[0])
        # What another order of the same sums does within one process.
        parts = [losses(trained(f"parts of {size}", 1, micro_batch=size)[0]) for size in (1, 2, 4)]
        rounding = max(np.abs(each - whole).max() for each in parts)
        assert 0 < rounding < 1e-3
        for world in (2, 3):
            ends = trained(f"{world} processes", world)
            assert np.abs(losses(ends[0]) - whole).max() <= 2 * rounding
            weights = [end.trainer.model.state_dict() for end in ends]
            assert all(torch.equal(value, weights[0][key]) for other in weights for key, value in other.items())
            np.testing.assert_array_equal(ends[-1].logits, ends[0].logits)
            tally["numbers: runs on 2 and 3 processes with the losses of one"] += 1


FAULTS = draws("faults").sample(["loss", "gradient", "weight", "moment"], amount(2, 4))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_odd_number_on_one_process_ends_all_at_one_step_for_one_reason(
    tmp_path: Path, tally: Counter[str], fault: str
) -> None:
    for trial in range(amount(1, 6)):
        draw = draws("one of several", fault, trial)
        world, step, value = draw.choice((2, 3)), draw.randint(1, 10), draw.choice((math.nan, math.inf))
        guilty, variant = draw.randrange(world), draw.choice(list(VARIANTS))

        def spoil(trainer: Trainer) -> None:
            weight = list(trainer.model.parameters())[-1]
            if trainer.ranks.rank != guilty:  # noqa: B023
                return
            if fault in ("weight", "moment"):

                def put(trainer: Trainer) -> None:
                    kept = weight.data if fault == "weight" else trainer.optimizer.state[weight]["exp_avg_sq"]
                    kept.view(-1)[0] = value  # noqa: B023

                at_step(step, put)(trainer)  # noqa: B023
            elif fault == "gradient":
                weight.register_hook(lambda x: x * (value if trainer.state.step == step - 1 else 1.0))  # noqa: B023
            else:
                forward = trainer.forward

                def odd(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                    return forward(tokens, mask) * (value if trainer.state.step == step - 1 else 1.0)  # noqa: B023

                trainer.forward = odd  # type: ignore[assignment]

        ends = on(
            world, configured(variant, log_every=draw.choice((1, 4))), data_for(variant), tmp_path / f"{trial}", spoil
        )
        why = [end.why for end in ends if isinstance(end.why, Diverged)]
        assert len(why) == len(ends)
        assert {(each.step, each.why) for each in why} == {(why[0].step, why[0].why)}
        assert step <= why[0].step <= next(saved for saved in (4, 5, 8, 10) if saved >= step)
        demand_finite_files(tmp_path / f"{trial}")
        tally["numbers: processes that ended together by an odd number of one"] += world
