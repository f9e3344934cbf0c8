"""The loop: what is recorded and saved when, how it stops, and how it goes on."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from support.trainers import TRAINING, TrainerFactory, recorded, run

from smollm.config.training import TrainingConfig
from smollm.device.group import Group
from smollm.errors import CheckpointError, Interrupted, TrainingError
from smollm.model.sharding import load_weights
from smollm.state.journal import Kind
from smollm.tracking.console import ProgressBar
from smollm.training.stop import StopSignal


def test_each_thing_is_recorded_when_it_is_due_and_at_the_end(trainers: TrainerFactory, tmp_path: Path) -> None:
    trainer = run(trainers(tmp_path))
    assert recorded(trainer, Kind.STEP) == recorded(trainer, Kind.SPEED) == [1, 5, 10, 12]
    assert recorded(trainer, Kind.VALIDATION) == [0, 4, 8, 12]
    assert recorded(trainer, Kind.SAMPLE) == [4, 6, 8, 12]  # those that are due, and of each best state
    # the newest two, the last of which is the best, and the best of the one before
    steps = [int(path.name.removeprefix("step-")) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert steps == [8, 10, 12]


REGULARIZED = replace(TRAINING, dropout=0.2, label_smoothing=0.1, ema_decay=0.9)


def test_a_later_stage_counts_on(trainers: TrainerFactory, tmp_path: Path) -> None:
    assert recorded(run(trainers(tmp_path, first_step=100)), "step") == [101, 105, 110, 112]


def test_training_lowers_the_loss(trainers: TrainerFactory, tmp_path: Path) -> None:
    losses = [r.values["loss"] for r in run(trainers(tmp_path)).journal.records() if r.kind == Kind.VALIDATION]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("training", [TRAINING, REGULARIZED], ids=["plain", "regularized"])
def test_going_on_from_a_checkpoint_is_exact(
    training: TrainingConfig, trainers: TrainerFactory, tmp_path: Path
) -> None:
    whole = run(trainers(tmp_path / "whole", training))
    first = trainers(tmp_path / "cut", training)
    first.journal.append(Kind.STEP, 7, train_loss=0.0)  # as if it had died later; the first record stands
    with pytest.raises(Interrupted), StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        first.run(stop, ProgressBar("test", 12))
    again = trainers(tmp_path / "cut", training)
    checkpoint = again.store.newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.state.step == 1
    again.restore(checkpoint)
    run(again)
    for name, value in whole.model.weights().items():
        assert torch.equal(value, again.model.weights()[name]), name
    for name, value in whole.assembly.optimizer.state().items():
        assert torch.equal(value, again.assembly.optimizer.state()[name]), name
    assert recorded(again, Kind.STEP) == [7, 1, 5, 10, 12]
    ends = [trainer.store.newest(pytest.fail) for trainer in (whole, again)]
    assert ends[0] is not None and ends[1] is not None
    assert bool(ends[0].average) == (training is REGULARIZED)
    for name, value in ends[0].average.items():
        assert torch.equal(value, ends[1].average[name]), name


def test_dropout_is_that_of_the_sequences_however_a_step_is_cut(trainers: TrainerFactory, tmp_path: Path) -> None:
    training = replace(TRAINING, dropout=0.3)
    numbers = [trainers(tmp_path / f"{size}", training, micro_batch=size).take_step(0.01) for size in (4, 2, 1)]
    np.testing.assert_allclose(numbers[1:], numbers[:1] * 2, rtol=1e-5)
    assert abs(numbers[0][0] - trainers(tmp_path / "plain").take_step(0.01)[0]) > 1e-3


def test_the_average_is_what_is_validated_and_the_weights_are_what_is_trained(
    trainers: TrainerFactory, tmp_path: Path
) -> None:
    plain = run(trainers(tmp_path / "plain"))
    averaged = run(trainers(tmp_path / "averaged", replace(TRAINING, ema_decay=0.9)))
    for name, value in plain.model.weights().items():
        assert torch.equal(value, averaged.model.weights()[name]), name
    checkpoint = averaged.store.newest(pytest.fail)
    assert checkpoint is not None
    assert not torch.equal(checkpoint.average["model.norm.weight"], checkpoint.weights["model.norm.weight"])
    load_weights(plain.model, checkpoint.exported)
    last = [record for record in averaged.journal.records() if record.kind == Kind.VALIDATION][-1]
    assert last.values["loss"] == plain._evaluator(plain.model).loss


def test_a_later_stage_starts_from_the_average(trainers: TrainerFactory, tmp_path: Path) -> None:
    checkpoint = run(trainers(tmp_path / "pretrain", REGULARIZED)).store.newest(pytest.fail)
    assert checkpoint is not None
    earlier = replace(checkpoint, state=replace(checkpoint.state, stage="earlier"))
    for training in (TRAINING, REGULARIZED):
        later = trainers(tmp_path / f"later {training.dropout}", training, first_step=12)
        later.restore(earlier)
        for name, value in later.model.weights().items():
            assert torch.equal(value, checkpoint.average[name]), name


def test_regularization_ends_with_the_training_loss(trainers: TrainerFactory, tmp_path: Path) -> None:
    """What is validated has neither dropout nor label smoothing, and what is logged no smoothing."""
    first_losses, validations = [], []
    for smoothing, dropout in [(0.0, 0.0), (0.5, 0.0), (0.5, 0.5)]:
        training = replace(TRAINING, label_smoothing=smoothing, dropout=dropout)
        records = run(trainers(tmp_path / f"{smoothing} {dropout}", training)).journal.records()
        first_losses.append(next(r.values["train_loss"] for r in records if r.kind == Kind.STEP))
        validations.append([r.values["loss"] for r in records if r.kind == Kind.VALIDATION])
    assert first_losses[0] == first_losses[1] != first_losses[2]
    assert validations[0][0] == validations[1][0] == validations[2][0]
    assert len({losses[-1] for losses in validations}) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_step_with_all_of_it_saved(
    trainers: TrainerFactory, tmp_path: Path, number: signal.Signals
) -> None:
    trainer = trainers(tmp_path)
    before = signal.getsignal(number)
    take = trainer.take_step

    def take_and_signal(rate: float) -> tuple[float, float]:
        if trainer.step == 2:
            os.kill(os.getpid(), number)
        return take(rate)

    trainer.take_step = take_and_signal  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 3; its state is saved") as caught:
        run(trainer)
    assert caught.value.exit_code == 128 + number
    checkpoint = trainer.store.newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.state.step == 3
    assert signal.getsignal(number) is before


T = TypeVar("T")


@dataclass(frozen=True)
class OneOfTwo(Group):
    """A rank of two, of which the other has the same losses, and is asked to stop before its third step."""

    size: int = 2
    sums: list[torch.Tensor] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.sums.append(values)
        return 2 * values + torch.tensor([0.0, 0.0, float(len(self.sums) == 3)])

    def all_reduce(self, value: int, reduce: Callable[[list[int]], int]) -> int:
        self.asked.append(value)
        return reduce([value, signal.SIGTERM])

    def all_gather(self, value: T) -> list[T]:
        return [value, value]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_stops_where_another_is_asked_to_and_rank_0_samples_alone(
    trainers: TrainerFactory, tmp_path: Path, rank: int
) -> None:
    trainer = trainers(tmp_path, replace(TRAINING, sample_every_steps=2))
    trainer.group = group = OneOfTwo(rank)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3; its state is saved"):
        run(trainer)
    assert group.asked == [0], "they ask each other only if one was asked"
    assert recorded(trainer, Kind.SAMPLE) == ([2] if rank == 0 else [])


def test_the_pace_is_that_of_the_fastest_step_told_once_and_may_end_it(
    trainers: TrainerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def paces(steps: int) -> list[tuple[int, float]]:
        trainer = trainers(tmp_path / str(steps), replace(TRAINING, steps=steps))
        told: list[tuple[int, float]] = []
        clock = iter(itertools.accumulate([0.0, 9.0, 0.0, 0.5] + [0.0, 0.25, 0.0, 0.75] * 50))
        with monkeypatch.context() as patch:
            patch.setattr(time, "perf_counter", lambda: next(clock))
            with StopSignal() as stop:
                trainer.run(stop, ProgressBar("test", steps), lambda seconds: told.append((trainer.step, seconds)))
        return told

    assert paces(30) == [(20, 0.25)]
    assert paces(20) == [], "no step is left"

    def refuse(_: float) -> None:
        raise TrainingError("too long")

    slow = trainers(tmp_path / "slow", replace(TRAINING, steps=30))
    with pytest.raises(TrainingError, match="too long"), StopSignal() as stop:
        slow.run(stop, ProgressBar("test", 30), refuse)
    assert slow.step == 20


def test_a_step_that_runs_out_of_memory_names_the_setting_to_lower(
    trainers: TrainerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainers(tmp_path)

    def run_out(_: float) -> tuple[float, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(trainer, "take_step", run_out)
    with pytest.raises(TrainingError, match=r"^params\.yaml: runtime\.micro_batch_size must fit .* got 2 sequences"):
        run(trainer)


def test_a_second_signal_kills() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_checkpoint_that_cannot_be_written_ends_it(trainers: TrainerFactory, tmp_path: Path) -> None:
    trainer = trainers(tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        run(trainer)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(trainers: TrainerFactory, tmp_path: Path) -> None:
    run(trainers(tmp_path))
    checkpoint = trainers(tmp_path).store.newest(pytest.fail)
    assert checkpoint is not None
    for change in ({"num_hidden_layers": 1}, {"intermediate_size": 64}):
        trainers.model = replace(trainers.model, **change)
        with pytest.raises(CheckpointError, match=r"must be of the model that params\.yaml describes") as caught:
            trainers(tmp_path).restore(checkpoint)
        assert len(str(caught.value).splitlines()) == 1


def test_goodput_counts_what_earlier_processes_did(trainers: TrainerFactory, tmp_path: Path) -> None:
    first = trainers(tmp_path)
    first.journal.append(Kind.SPEED, 1, useful_seconds=1000.0, lived_seconds=4000.0)
    again = run(trainers(tmp_path))
    last = [record.values for record in again.journal.records() if record.kind == Kind.SPEED][-1]
    assert last["useful_seconds"] > 1000
    assert 0 < last["goodput"] < 0.3
