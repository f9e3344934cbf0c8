"""The loop: what is recorded and saved when, how it stops, and how it goes on."""

import itertools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from smollm.config.evaluation import EvaluationConfig
from smollm.config.model import ModelConfig
from smollm.config.runtime import Precision
from smollm.config.training import OptimizerConfig, OptimizerKind, ScheduleConfig, TrainingConfig
from smollm.device.hardware import Hardware
from smollm.errors import CheckpointError, Interrupted, NonFinite, TrainingError
from smollm.model.llama import LlamaForCausalLM
from smollm.state.journal import Journal
from smollm.state.tokens import token_bytes
from smollm.tracking.console import Progress
from smollm.training.batches import Batches, validation_windows
from smollm.training.checkpoint import CheckpointStore
from smollm.training.evaluate import Evaluator
from smollm.training.optim import Optimizer
from smollm.training.trainer import Plan, StopSignal, Trainer

TRAINING = TrainingConfig(
    steps=12,
    sequences_per_step=4,
    sequence_length=16,
    optimizer=OptimizerConfig(OptimizerKind.MUON, 0.01, 0.01, 0.1, (0.9, 0.95), 1e-8, 0.95, 5),
    schedule=ScheduleConfig(2, 0.5, 0.0),
    mask_documents=False,
    gradient_clip=1.0,
    log_every_steps=5,
    sample_every_steps=6,
    validate_every_steps=4,
)
TOKENS = np.random.default_rng(0).integers(0, 30, 3000).astype(np.uint16)


@pytest.fixture
def parts(model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware) -> "Parts":
    return Parts(model_config, tokenizer, cpu)


class Parts:
    """Builds trainers that differ in a few things."""

    def __init__(self, model: ModelConfig, tokenizer: Tokenizer, hardware: Hardware) -> None:
        self.model, self.tokenizer, self.hardware = model, tokenizer, hardware

    def trainer(self, directory: Path, training: TrainingConfig = TRAINING, first_step: int = 0) -> Trainer:
        directory.mkdir(exist_ok=True)
        torch.manual_seed(1)
        model = LlamaForCausalLM(self.model)
        plan = Plan("pretrain", "abc", 1, first_step, training, EvaluationConfig(64, ("a",), 3, 1.0, 5), 5)
        windows = validation_windows(TOKENS, training.sequence_length, 64, "pretrain")
        return Trainer(
            plan,
            model,
            Optimizer(model, training.optimizer),
            Batches(TOKENS, training.sequences_per_step, training.sequence_length, 1, "pretrain"),
            Evaluator(windows, token_bytes(self.tokenizer), 2, self.hardware),
            self.tokenizer,
            self.hardware,
            Journal(directory / "journal.jsonl"),
            CheckpointStore(directory / "checkpoints", 2, "abc"),
        )


def run(trainer: Trainer) -> Trainer:
    with StopSignal() as stop:
        trainer.run(stop, Progress("test", trainer.plan.training.steps, trainer.done))
    return trainer


def recorded(trainer: Trainer, kind: str) -> list[int]:
    return [record.step for record in trainer.journal.records() if record.kind == kind]


def test_each_thing_is_recorded_when_it_is_due_and_at_the_end(parts: Parts, tmp_path: Path) -> None:
    trainer = run(parts.trainer(tmp_path))
    assert recorded(trainer, "step") == recorded(trainer, "speed") == [1, 5, 10, 12]
    assert recorded(trainer, "validation") == [0, 4, 8, 12]
    assert recorded(trainer, "sample") == [6, 12]
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000010", "step-00000012"]


def test_a_later_stage_counts_on(parts: Parts, tmp_path: Path) -> None:
    assert recorded(run(parts.trainer(tmp_path, first_step=100)), "step") == [101, 105, 110, 112]


def test_training_lowers_the_loss(parts: Parts, tmp_path: Path) -> None:
    losses = [r.values["loss"] for r in run(parts.trainer(tmp_path)).journal.records() if r.kind == "validation"]
    assert losses[-1] < losses[0] - 0.3


def test_going_on_from_a_checkpoint_is_exact(parts: Parts, tmp_path: Path) -> None:
    whole = run(parts.trainer(tmp_path / "whole"))
    first = parts.trainer(tmp_path / "cut")
    first.journal.append("step", 7, train_loss=0.0)  # as if it had died later; the first record stands
    with pytest.raises(Interrupted), StopSignal() as stop:
        stop.received = signal.SIGTERM
        first.run(stop, Progress("test", 12))
    again = parts.trainer(tmp_path / "cut")
    checkpoint = again.store.newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.state.step == 1
    again.restore(checkpoint)
    run(again)
    for name, value in whole.model.weights().items():
        assert torch.equal(value, again.model.weights()[name]), name
    for name, value in whole.optimizer.state().items():
        assert torch.equal(value, again.optimizer.state()[name]), name
    assert recorded(again, "step") == [7, 1, 5, 10, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_step_with_all_of_it_saved(
    parts: Parts, tmp_path: Path, number: signal.Signals
) -> None:
    trainer = parts.trainer(tmp_path)
    before = signal.getsignal(number)
    take = trainer.take_step

    def take_and_signal(rate: float) -> tuple[float, float]:
        if trainer.step == 2:
            os.kill(os.getpid(), number)
        return take(rate)

    trainer.take_step = take_and_signal  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 3, all of it saved") as caught:
        run(trainer)
    assert caught.value.exit_code == 128 + number
    checkpoint = trainer.store.newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.state.step == 3
    assert signal.getsignal(number) is before


def poison(trainer: Trainer, token: int) -> None:
    """Make the loss of every sequence that begins with `token` not a number, from the third step on."""
    real = trainer.model.loss

    def loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        good = real(ids, targets)
        is_bad = trainer.step == 2 and bool((ids[:, 0] == token).any())
        return good * float("nan") if is_bad else good

    trainer.model.loss = loss  # type: ignore[method-assign]


def test_numbers_that_are_not_finite_stop_before_the_step_and_name_its_sequences(parts: Parts, tmp_path: Path) -> None:
    trainer = parts.trainer(tmp_path)
    starts = trainer.batches.starts(3)
    poison(trainer, int(TOKENS[starts[1]]))
    with pytest.raises(NonFinite, match=r"must be finite, got loss nan .* at step 3, which was not taken") as caught:
        run(trainer)
    assert len(str(caught.value).splitlines()) == 1
    assert trainer.step == 2
    assert all(torch.isfinite(value).all() for value in trainer.model.weights().values())
    values = caught.value.values
    assert (values["step"], values["learning_rate"]) == (3, 0.01)
    assert np.isnan(values["loss"])
    assert [sequence["first_token"] for sequence in values["sequences"]] == starts
    expected = [TOKENS[start] == TOKENS[starts[1]] for start in starts]
    assert [bool(np.isnan(sequence["loss"])) for sequence in values["sequences"]] == expected
    assert [bool(np.isnan(sequence["gradient_norm"])) for sequence in values["sequences"]] == expected
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_gradient_that_is_not_finite_stops_too(parts: Parts, tmp_path: Path) -> None:
    trainer = parts.trainer(tmp_path)
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFinite, match=r"got loss [\d.]+ and gradient norm (inf|nan) at step 1"):
        run(trainer)


def test_an_overflow_in_fp16_skips_the_step_for_every_parameter_and_lowers_the_scale(
    parts: Parts, tmp_path: Path
) -> None:
    parts.hardware = replace(parts.hardware, precision=Precision.FP16)
    trainer = parts.trainer(tmp_path)
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**40})
    before = {name: value.detach().clone() for name, value in trainer.model.weights().items()}
    _, norm = trainer.take_step(0.01)
    assert not np.isfinite(norm)
    assert trainer.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.weights().items())
    trainer.done += 1
    trainer.take_step(0.01)
    skips = [(r.step, r.values) for r in trainer.journal.records() if r.kind == "skip"]
    assert skips == [(1, {"loss_scale": 2.0**40, "total": 1}), (2, {"loss_scale": 2.0**39, "total": 2})]


def test_skips_of_a_killed_process_are_counted_once(parts: Parts, tmp_path: Path) -> None:
    parts.hardware = replace(parts.hardware, precision=Precision.FP16)
    first = parts.trainer(tmp_path)
    for step in (2, 9):
        first.journal.append("skip", step, loss_scale=2.0, total=step)
    again = parts.trainer(tmp_path)
    again.done = 5
    again.scaler.load_state_dict({**again.scaler.state_dict(), "scale": 2.0**40})
    again.take_step(0.01)
    (last,) = [r.values for r in again.journal.records() if r.kind == "skip" and r.step == 6]
    assert last["total"] == 2


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_half_precision_follows_float32(parts: Parts, tmp_path: Path, precision: Precision) -> None:
    training = replace(TRAINING, steps=60, validate_every_steps=10)
    exact = run(parts.trainer(tmp_path / "fp32", training))
    parts.hardware = replace(parts.hardware, precision=precision)
    half = run(parts.trainer(tmp_path / "half", training))
    losses = [[r.values["loss"] for r in t.journal.records() if r.kind == "validation"] for t in (exact, half)]
    assert losses[0] != losses[1]
    assert losses[0][-1] < losses[0][0] - 0.5
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


@pytest.mark.parametrize("where", ["validation", "weights"])
def test_what_the_last_step_ruined_is_not_saved(parts: Parts, tmp_path: Path, where: str) -> None:
    trainer = parts.trainer(tmp_path)
    take = trainer.take_step

    def take_and_ruin(rate: float) -> tuple[float, float]:
        numbers = take(rate)
        if trainer.step == (11 if where == "validation" else 9):  # 12 is validated, 10 is only saved
            trainer.model.model.norm.weight.data.fill_(float("inf"))
        return numbers

    trainer.take_step = take_and_ruin  # type: ignore[method-assign]
    with pytest.raises(
        NonFinite, match="the validation loss must be" if where == "validation" else "all weights must be"
    ):
        run(trainer)
    trainer.store.wait()
    checkpoint = trainer.store.newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.state.step == (10 if where == "validation" else 5)


def test_the_pace_is_that_of_the_fastest_step_told_once_and_may_end_it(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = parts.trainer(tmp_path, replace(TRAINING, steps=30))
    told: list[tuple[int, float]] = []
    clock = iter(itertools.accumulate([0.0, 9.0, 0.0, 0.5] + [0.0, 0.25, 0.0, 0.75] * 50))
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: next(clock))
        with StopSignal() as stop:
            trainer.run(stop, Progress("test", 30), lambda seconds: told.append((trainer.step, seconds)))
    assert told == [(20, 0.25)]

    def refuse(_: float) -> None:
        raise TrainingError("too long")

    slow = parts.trainer(tmp_path / "slow", replace(TRAINING, steps=30))
    with pytest.raises(TrainingError, match="too long"), StopSignal() as stop:
        slow.run(stop, Progress("test", 30), refuse)
    assert slow.step == 20


def test_a_second_signal_kills(parts: Parts) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_checkpoint_that_cannot_be_written_ends_it(parts: Parts, tmp_path: Path) -> None:
    trainer = parts.trainer(tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        run(trainer)


def test_the_loss_scale_is_carried_over_a_resume(parts: Parts, tmp_path: Path) -> None:
    parts.hardware = replace(parts.hardware, precision=Precision.FP16)
    first = run(parts.trainer(tmp_path))
    again = parts.trainer(tmp_path)
    checkpoint = again.store.newest(pytest.fail)
    assert checkpoint is not None
    again.restore(checkpoint)
    assert checkpoint.state.clean_steps == 12
    assert again.scaler.state_dict() == first.scaler.state_dict()


def test_fp16_that_never_finds_a_scale_ends_with_one_line(parts: Parts, tmp_path: Path) -> None:
    parts.hardware = replace(parts.hardware, precision=Precision.FP16)
    trainer = parts.trainer(tmp_path, replace(TRAINING, steps=100))
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"must be finite at some loss scale, got 50 steps in a row"):
        run(trainer)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(parts: Parts, tmp_path: Path) -> None:
    run(parts.trainer(tmp_path))
    checkpoint = parts.trainer(tmp_path).store.newest(pytest.fail)
    assert checkpoint is not None
    for change in ({"num_hidden_layers": 1}, {"intermediate_size": 64}):
        parts.model = replace(parts.model, **change)
        with pytest.raises(CheckpointError, match=r"must be of the model that params\.yaml describes") as caught:
            parts.trainer(tmp_path).restore(checkpoint)
        assert len(str(caught.value).splitlines()) == 1


def test_goodput_counts_what_earlier_processes_did(parts: Parts, tmp_path: Path) -> None:
    first = parts.trainer(tmp_path)
    first.journal.append("speed", 1, useful_seconds=1000.0, lived_seconds=4000.0)
    again = run(parts.trainer(tmp_path))
    last = [record.values for record in again.journal.records() if record.kind == "speed"][-1]
    assert last["useful_seconds"] > 1000
    assert 0 < last["goodput"] < 0.3
