"""The loop: learning, schedule, memory, divergence, evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lra import checkpoint
from lra.config import Config, Model, Train
from lra.data import Data, Split, collate
from lra.endings import Diverged, OutOfMemory, Stopped, StopSignal
from lra.evaluation import evaluate, head
from lra.loop import Trainer, build
from lra.progress import Display
from lra.run import Run
from lra.schedule import rate
from lra.session import set_up
from lra.tracker import open_tracker
from lra.words import WordError
from tests.runs import SPEED

CPU = torch.device("cpu")
TASK = {"name": "listops", "source": "synthetic", "version": "1.0.0"}


def first_token_data(examples: int = 64, seed: int = 0) -> Data:
    """Documents of 1 to 40 tokens whose label is their first token."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> Split:
        lengths = rng.integers(1, 41, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = rng.integers(1, 4, offsets[-1]).astype(np.uint8)
        return Split(tokens, offsets, tokens[offsets[:-1]] - 1)

    return Data(
        {"max_len": 40, "classes": 3, "sha256": "0" * 64, "vocabulary": list("abcd")}, *map(split, (examples, 21, 22))
    )


def pair_data(examples: int = 64) -> Data:
    """Pairs of the documents of `first_token_data`, whose label is the larger of their two labels."""
    plain = first_token_data(examples)

    def paired(split: Split) -> Split:
        pairs = np.random.default_rng(1).integers(0, len(split.labels), (len(split.labels), 2)).astype(np.int32)
        return split._replace(pairs=pairs, labels=split.labels[pairs].max(1))

    return Data(plain.manifest, *map(paired, plain[1:]))


def picture_data(examples: int = 64) -> Data:
    """Pictures of 32 pixels, two thirds of them black and the first wholly; the label is the brightest pixel's half."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        pixels = rng.integers(1, 4, (count, 32)) * (rng.random((count, 32)) < 1 / 3)
        pixels[0] = 0
        labels = (pixels.argmax(1) >= 16).astype(np.uint8)
        return Split(pixels.astype(np.uint8).reshape(-1), np.arange(count + 1) * 32, labels)

    manifest = {**first_token_data(1).manifest, "kind": "pixels", "max_len": 32}
    return Data(manifest, *map(split, (examples, 21, 22)))


def config(attn: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **train: Any) -> Config:
    options = {
        "steps": 12,
        "warmup": 3,
        "batch_size": 8,
        "eval_every": 5,
        "log_every": 1,
        "checkpoint_every": 4,
        **train,
    }
    size = {"dim": 16, "head_dim": 8, "ffn": 16, "seq_len": 48, "dropout": 0.0, **(model or {})}
    return Config(task=TASK, attn=attn or {"name": "softmax"}, model=Model(**size), train=Train(**options))


@pytest.fixture(name="trainer")
def trainer_maker(tmp_path: Path) -> Iterator[Any]:
    """Makes trainers, each in a directory of its own; closes them at the end."""
    made: list[Trainer] = []

    def make(given: Config, data: Data | None = None, name: str = "run", dtype: torch.dtype = torch.float32) -> Trainer:
        run = Run(tmp_path / name, asdict(given))
        try:
            data = data or first_token_data()
            model = build(given, 4, 3, pairs=data.train.pairs is not None)
            made.append(Trainer(given, model, data, run, CPU, dtype, StopSignal()))
        except ValueError:
            run.close()
            raise
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()
        trainer.run.close()


def train(trainer: Trainer, tmp_path: Path) -> list[dict[str, Any]]:
    """Run the trainer, return its records."""
    from lra.tracker import read_metrics

    tracker = open_tracker("jsonl", tmp_path, "id", "lra", group="g", name="n", tags=[], config={}, history=[])
    with Display(trainer.options.steps, trainer.state.step) as display:
        trainer.train(tracker, display)
    return list(read_metrics(trainer.run.metrics))


def losses(records: list[dict[str, Any]], split: str = "train") -> list[float]:
    return [record["loss"] for record in records if record["split"] == split]


def test_a_learnable_task_is_learned(trainer: Any, tmp_path: Path) -> None:
    given = config(steps=150, warmup=10, lr=1e-2, eval_every=50)
    trained = trainer(given, first_token_data(512))
    train(trained, tmp_path)
    test, seen = trained.conclude()
    assert test.accuracy > 0.9
    assert len(seen.labels) == 21


def test_the_schedule_is_the_published_one_and_beta1_stays(trainer: Any, tmp_path: Path) -> None:
    trained = trainer(config(steps=20, warmup=5))
    betas: set[float] = set()
    trained.optimizer.register_step_post_hook(lambda opt, *_: betas.add(opt.param_groups[0]["betas"][0]))
    rates = [record["lr"] for record in train(trained, tmp_path) if record["split"] == "train"]
    assert_close(torch.tensor([rates[0], rates[4], rates[19]]), torch.tensor([4e-6, 1e-4, 4e-10]))
    rise, fall = np.diff(rates[:5]), np.diff(rates[4:])
    np.testing.assert_allclose(rise, rise[0], rtol=1e-6)
    np.testing.assert_allclose(fall, fall[0], rtol=1e-6)
    assert betas == {0.9}


def test_momentum_cycles_where_it_is_asked_for(trainer: Any, tmp_path: Path) -> None:
    trained = trainer(config(steps=20, warmup=5, cycle_momentum=True))
    betas: list[float] = []
    trained.optimizer.register_step_post_hook(lambda opt, *_: betas.append(opt.param_groups[0]["betas"][0]))
    train(trained, tmp_path)
    assert_close(torch.tensor([betas[0], betas[4], betas[19]]), torch.tensor([0.95, 0.85, 0.95]))


@pytest.mark.parametrize("attn", [{"name": "softmax"}, {"name": "mra2", "block_size": 8, "blocks_per_row": 2}])
def test_fixed_and_bucketed_padding_give_the_same_losses(trainer: Any, tmp_path: Path, attn: dict[str, Any]) -> None:
    runs = [
        losses(train(trainer(config(attn, padding=padding, lr=1e-3), name=padding), tmp_path))
        for padding in ("bucket", "fixed")
    ]
    assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=1e-4, atol=1e-5)


def test_micro_batches_compute_the_same_step(trainer: Any, tmp_path: Path) -> None:
    runs = [
        losses(train(trainer(config(micro_batch=size, lr=1e-3, clip=0.5), name=f"{size}"), tmp_path))
        for size in (8, 3, 1)
    ]
    for other in runs[1:]:
        assert_close(torch.tensor(runs[0]), torch.tensor(other), rtol=1e-4, atol=1e-5)


def test_memory_that_runs_out_halves_the_micro_batch_and_changes_nothing_else(trainer: Any, tmp_path: Path) -> None:
    whole = losses(train(trainer(config(lr=1e-3), name="whole"), tmp_path))
    tight = trainer(config(lr=1e-3), name="tight")
    limit_memory(tight, examples=3)
    assert_close(torch.tensor(losses(train(tight, tmp_path))), torch.tensor(whole), rtol=1e-4, atol=1e-5)
    assert tight.state.micro_batch == 2


def limit_memory(trainer: Trainer, examples: int) -> None:
    """Let training forward passes of more than so many examples fail as CUDA does."""
    forward = trainer.forward

    def limited(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if len(tokens) > examples:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(tokens, mask)

    trainer.forward = limited  # type: ignore[assignment]


def test_memory_for_not_even_one_example_ends_with_what_to_change(trainer: Any, tmp_path: Path) -> None:
    tight = trainer(config())
    limit_memory(tight, examples=0)
    with pytest.raises(OutOfMemory, match="no memory for 1 examples"):
        train(tight, tmp_path)
    fixed = trainer(config(micro_batch=8), name="fixed")
    limit_memory(fixed, examples=4)
    with pytest.raises(OutOfMemory, match="train.micro_batch=4"):
        train(fixed, tmp_path)


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_loss_that_is_not_finite_ends_at_its_step_with_the_last_good_checkpoint(
    trainer: Any, tmp_path: Path, log_every: int
) -> None:
    trained = trainer(config(log_every=log_every))
    forward = trained.forward

    def poisoned(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return forward(tokens, mask) * (float("nan") if trained.state.step == 6 else 1.0)

    trained.forward = poisoned
    with pytest.raises(Diverged) as ended:
        train(trained, tmp_path)
    assert ended.value.step == 7
    last = checkpoint.load(trained.run.last, CPU)
    assert last["state"]["step"] in (4, 5)
    assert all(bool(weight.isfinite().all()) for weight in last["model"].values())


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(trainer: Any, tmp_path: Path) -> None:
    trained = trainer(config())
    trained.optimizer.register_step_post_hook(
        lambda *_: trained.model.head[0].weight.data.fill_(float("inf")) if trained.state.step == 7 else None
    )
    with pytest.raises(Diverged) as ended:
        train(trained, tmp_path)
    assert ended.value.step == 8
    assert checkpoint.load(trained.run.last, CPU)["state"]["step"] == 5


@pytest.mark.parametrize("reads", range(0, 40, 3))
def test_a_signal_at_any_instant_is_answered_with_its_step_saved(trainer: Any, tmp_path: Path, reads: int) -> None:
    class Late(StopSignal):
        """A signal that comes after so many looks at it."""

        def __init__(self) -> None:
            self.looks = 0

        @property
        def signum(self) -> int:  # type: ignore[override]
            self.looks += 1
            return 15 if self.looks > reads else 0

    trained = trainer(config(checkpoint_every=100, steps=40))
    trained.stop = Late()
    with pytest.raises(Stopped):
        train(trained, tmp_path)
    assert checkpoint.load(trained.run.last, CPU)["state"]["step"] == trained.state.step


def test_evaluation_scores_every_example_in_the_order_of_the_split(trainer: Any) -> None:
    trained = trainer(config())
    split = trained.data.test
    scores = evaluate(trained.model, split, 40, 5, CPU, torch.float32)
    trained.model.eval()
    for i in range(len(split.labels)):
        tokens = torch.from_numpy(split.tokens[split.offsets[i] : split.offsets[i + 1]].astype(np.int64))[None]
        alone = trained.model(tokens, torch.ones_like(tokens, dtype=torch.bool))[0].detach().numpy()
        np.testing.assert_allclose(scores.logits[i], alone, rtol=1e-4, atol=1e-5)
    assert scores.accuracy == np.mean(scores.logits.argmax(1) == split.labels)
    assert scores.labels.tolist() == split.labels.tolist()


def test_the_head_of_a_split_is_its_first_examples() -> None:
    split = first_token_data().train
    few = head(split, 5)
    assert len(few.labels) == 5
    assert few.lengths.tolist() == split.lengths[:5].tolist()
    pairs = split._replace(pairs=np.zeros((64, 2), np.int32))
    assert head(pairs, 5).pairs is not None
    assert len(head(pairs, 5).lengths) == 5


def test_a_checkpoint_of_other_data_is_refused(trainer: Any, tmp_path: Path) -> None:
    first = trainer(config())
    train(first, tmp_path)
    first.close()
    first.run.close()
    other = first_token_data()
    other = other._replace(manifest={**other.manifest, "sha256": "1" * 64})
    with pytest.raises(ValueError, match="was trained on other data"):
        trainer(config(), other)


@pytest.mark.parametrize(
    ("attn", "line"),
    [
        ({"name": "mra_2"}, r"attn\.name=mra_2 is not one of .*did you mean 'mra2'"),
        ({"name": "mra2", "blok_size": 3}, r"attn\.blok_size: mra2 takes .*did you mean 'block_size'"),
        ({"name": "mra2", "block_size": 0}, r"attn=mra2: .*block_size"),
        ({"name": "softmax", "block_size": 8}, r"attn\.block_size: softmax takes dropout"),
    ],
)
def test_a_wrong_attention_parameter_is_one_line_that_names_it(attn: dict[str, Any], line: str) -> None:
    with pytest.raises(WordError, match=line) as caught:
        build(config(attn), 4, 3)
    assert "\n" not in str(caught.value)


def test_dropout_is_a_function_of_the_step_alone(trainer: Any, tmp_path: Path) -> None:
    given = config(model={"dropout": 0.3})
    whole = losses(train(trainer(given, name="whole"), tmp_path))
    noisy = trainer(given, name="noisy")
    noisy.optimizer.register_step_post_hook(lambda *_: torch.rand(7) is None)
    assert losses(train(noisy, tmp_path)) == whole
    other = trainer(replace(given, seed=1), name="other")
    assert losses(train(other, tmp_path)) != whole


def test_bfloat16_trains(trainer: Any, tmp_path: Path) -> None:
    trained = trainer(config(dtype="bfloat16"), dtype=torch.bfloat16)
    assert all(np.isfinite(losses(train(trained, tmp_path))))


def test_compiled_and_plain_models_give_the_same_losses(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = losses(train(trainer(config(lr=1e-3), name="plain"), tmp_path))
    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_model(model, backend="aot_eager"))
    compiled = losses(train(trainer(config(lr=1e-3, compile=True), name="compiled"), tmp_path))
    assert_close(torch.tensor(compiled), torch.tensor(plain), rtol=1e-4, atol=1e-5)


# Pairs


def test_pairs_are_learned_by_the_same_loop(trainer: Any, tmp_path: Path) -> None:
    trained = trainer(config(model={"pooling": "first"}, steps=200, warmup=10, lr=3e-3, eval_every=100), pair_data(512))
    train(trained, tmp_path)
    test, _ = trained.conclude()
    assert test.accuracy > 0.85


def test_the_tokens_of_a_pair_are_those_of_both_documents(trainer: Any, tmp_path: Path) -> None:
    data = pair_data()
    trained = trainer(config(model={"seq_len": 16}, steps=3, warmup=2), data)
    seen: list[int] = []
    for step in range(3):
        documents = data.train.pairs[trained.sampler.batch(step)]  # type: ignore[index]
        seen.append(int(np.minimum(np.diff(data.train.offsets), 16)[documents].sum()))
    train(trained, tmp_path)
    assert trained.state.tokens == sum(seen)


def test_pairs_fit_into_micro_batches(trainer: Any, tmp_path: Path) -> None:
    runs = [
        losses(train(trainer(config(micro_batch=size, lr=1e-3), pair_data(), name=f"{size}"), tmp_path))
        for size in (8, 3)
    ]
    assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=1e-4, atol=1e-5)


# Pixels that count as padding


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_black_pixels_are_padding_where_they_are_asked_to_be(trainer: Any, tmp_path: Path, pooling: str) -> None:
    data = picture_data()
    given = replace(config(model={"pooling": pooling}, lr=1e-3), task={**TASK, "mask_zero_pixels": True})
    masked = trainer(given, data, name="masked")
    assert all(np.isfinite(losses(train(masked, tmp_path))))
    lit = np.count_nonzero(
        data.train.tokens.reshape(-1, 32)[np.concatenate([masked.sampler.batch(i) for i in range(12)])]
    )
    assert masked.state.tokens == lit
    scores = masked.score(data.test, "test")
    assert np.isfinite(scores.logits).all()

    # What a black pixel is embedded as no longer matters.
    with torch.no_grad():
        masked.model.encoder.tokens.weight[0] += 1
    np.testing.assert_allclose(masked.score(data.test, "test").logits, scores.logits, rtol=1e-5, atol=1e-6)
    plain = trainer(replace(given, task=TASK), data, name="plain")
    train(plain, tmp_path)
    assert plain.state.tokens == 12 * 8 * 32


def test_an_image_is_never_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture_data()
    monkeypatch.setattr("lra.session.load", lambda *_, **__: data)
    short = config(model={"seq_len": 31})
    run = Run(tmp_path / "short", asdict(short))
    with pytest.raises(WordError, match=r"^model\.seq_len=31 must be at least 32: an image is never cut$"):
        set_up(replace(short, device="cpu"), run)
    data = data._replace(manifest={**data.manifest, "kind": "tokens"})
    set_up(replace(short, device="cpu"), run).close()
    run.close()
    torch.use_deterministic_algorithms(False)


def test_zero_is_a_token_like_any_other_unless_it_is_masked() -> None:
    split = Split(np.array([0, 1, 0, 2, 0, 0, 0], np.uint8), np.array([0, 4, 7]), np.array([0, 1], np.uint8))
    plain, masked = (collate(split, np.arange(2), 8, mask_zero=zero).mask.tolist() for zero in (False, True))
    assert plain == [[True] * 4 + [False] * 4, [True] * 3 + [False] * 5]
    assert masked == [[False, True, False, True] + [False] * 4, [False] * 8]


# Schedules and what is tested

GOOGLE: dict[str, Any] = {"schedule": "rsqrt", "warmup": 40, "lr": 0.5, "weight_decay": 0.1, "beta2": 0.98, "eps": 1e-9}
AROUND: dict[str, Any] = {"pooling": "cls", "positions": "sinusoidal", "init": "xavier", "bias": False, "dropout": 0.1}


@pytest.mark.parametrize("schedule", [{"schedule": "rsqrt", "warmup": 30}, {"schedule": "cosine", "warmup": 4}])
def test_the_optimizer_steps_at_the_rate_of_the_schedule(
    trainer: Any, tmp_path: Path, schedule: dict[str, Any]
) -> None:
    trained = trainer(config(**schedule, beta2=0.98))
    groups: list[tuple[float, Any]] = []
    trained.optimizer.register_step_post_hook(
        lambda opt, *_: groups.append((opt.param_groups[0]["lr"], opt.param_groups[0]["betas"]))
    )
    records = train(trained, tmp_path)
    expected = [rate(trained.options, step) for step in range(12)]
    assert [group[0] for group in groups] == expected
    assert [record["lr"] for record in records if record["split"] == "train"] == expected
    assert {group[1] for group in groups} == {(0.9, 0.98)}


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_weights_that_are_selected_are_those_that_are_tested(trainer: Any, tmp_path: Path, select: str) -> None:
    # A rate that destroys what was learned, so that the best step is not the last.
    trained = trainer(config(steps=40, warmup=39, lr=3.0, select=select, eval_every=4))
    train(trained, tmp_path)
    last = {name: weight.clone() for name, weight in trained.model.state_dict().items()}
    assert trained.state.best_step < 40
    trained.conclude()
    same = all(torch.equal(weight, last[name]) for name, weight in trained.model.state_dict().items())
    assert same == (select == "last")
    assert trained.tested == (40 if select == "last" else trained.state.best_step)
    assert trained.run.best.exists() == (select == "best")


@pytest.mark.parametrize("stop", [5, 7, 11])
def test_a_stopped_run_of_the_other_protocol_ends_with_the_same_bits(trainer: Any, tmp_path: Path, stop: int) -> None:
    given = config(model=AROUND, select="last", **GOOGLE)
    whole = trainer(given, pair_data(), name="whole")
    records = train(whole, tmp_path)

    class At(StopSignal):
        """A signal at a step."""

        def __init__(self) -> None:
            pass

        @property
        def signum(self) -> int:  # type: ignore[override]
            return 15 if first.state.step == stop else 0

    first = trainer(given, pair_data(), name="parts")
    first.stop = At()
    with pytest.raises(Stopped):
        train(first, tmp_path)
    first.close()
    first.run.close()
    second = trainer(given, pair_data(), name="parts")
    assert second.state.step == stop
    assert second.state.wall_seconds > 0
    again = train(second, tmp_path)
    seconds = [record["seconds"] for record in again]
    assert seconds == sorted(seconds)
    assert {record["steps"] for record in again} == {12}
    assert [{k: v for k, v in r.items() if k not in SPEED} for r in again] == [
        {k: v for k, v in r.items() if k not in SPEED} for r in records
    ]
    np.testing.assert_array_equal(second.conclude()[0].logits, whole.conclude()[0].logits)


def test_a_checkpoint_of_before_the_wall_clock_was_kept_goes_on_from_its_time_in_steps(
    trainer: Any, tmp_path: Path
) -> None:
    whole = trainer(config(), name="older")
    train(whole, tmp_path)
    whole.close()
    whole.run.close()
    saved = checkpoint.load(whole.run.last, CPU)
    del saved["state"]["wall_seconds"]
    checkpoint.save(whole.run.last, saved)
    assert trainer(config(), name="older").state.wall_seconds == saved["state"]["seconds"] > 0
