"""Which state is the best, that it is kept, and that no kill changes which."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.trainers import TRAINING, TrainerFactory, recorded, run

from smollm.config.training import TrainingConfig
from smollm.errors import Interrupted
from smollm.model.llama import LlamaForCausalLM
from smollm.state.journal import Kind
from smollm.tracking.console import ProgressBar
from smollm.training.best import BestValidation, best_after
from smollm.training.checkpoint import Checkpoint, verify
from smollm.training.checkpoint_store import CheckpointStore
from smollm.training.evaluate import Evaluator, Validation
from smollm.training.stop import StopSignal
from smollm.training.trainer import Trainer

TURNING = {0: 5.0, 4: 3.0, 8: 2.0, 12: 2.0, 16: 2.5, 20: 2.6, 24: 2.7, 28: 2.8}
"""Bits per byte by step: best at step 8, and as good once more."""

LONG = replace(TRAINING, steps=28)


@contextmanager
def validations(trainer: Trainer, bits_per_byte: dict[int, float] = TURNING) -> Iterator[None]:
    """Have validation give these values, by step."""

    def evaluate(_: Evaluator, __: LlamaForCausalLM) -> Validation:
        return Validation(bits_per_byte[trainer.step], bits_per_byte[trainer.step], 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "__call__", evaluate)
        yield


def train(trainer: Trainer) -> Trainer:
    with validations(trainer):
        return run(trainer)


def resumed(trainers: TrainerFactory, directory: Path, training: TrainingConfig) -> Trainer:
    """A trainer that goes on from what is in `directory`, as after a kill."""
    trainer = trainers(directory, training)
    checkpoint = trainer.store.newest(pytest.fail)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    return trainer


def kept(trainer: Trainer) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in trainer.store.directory.iterdir())


def newest(store: CheckpointStore) -> Checkpoint:
    checkpoint = store.newest(pytest.fail)
    assert checkpoint is not None
    return checkpoint


def test_the_best_is_the_lowest_and_of_equal_ones_the_first() -> None:
    best = None
    history = []
    for step, bits_per_byte in TURNING.items():
        best = best_after(best, step, bits_per_byte)
        history.append((best.step, best.validations_since))
    assert history == [(0, 0), (4, 0), (8, 0), (8, 1), (8, 2), (8, 3), (8, 4), (8, 5)]


def test_the_best_state_is_kept_beside_the_newest_ones(trainers: TrainerFactory, tmp_path: Path) -> None:
    trainer = train(trainers(tmp_path, LONG))
    assert kept(trainer) == [8, 25, 28]
    assert newest(trainer.store).state.best == BestValidation(8, 2.0, validations_since=5)
    assert recorded(trainer, Kind.SAMPLE) == [4, 6, 8, 12, 18, 24, 28]
    last = [r.values for r in trainer.journal.records() if r.kind == Kind.VALIDATION][-1]
    assert (last["best_step"], last["best_bits_per_byte"]) == (8, 2.0)


def test_the_best_state_is_the_one_that_was_validated(trainers: TrainerFactory, tmp_path: Path) -> None:
    turning = train(trainers(tmp_path / "long", LONG))
    short = trainers(tmp_path / "short", LONG)
    with validations(short), pytest.raises(Interrupted), StopSignal() as stop:
        take = short.take_step

        def take_and_stop(rate: float) -> tuple[float, float]:
            if short.step == 7:
                signal.raise_signal(signal.SIGTERM)
            return take(rate)

        short.take_step = take_and_stop  # type: ignore[method-assign]
        short.run(stop, ProgressBar("test", 28))
    verify(turning.store.directory_of(8))
    for name in ("model.safetensors", "optimizer.safetensors"):
        best, stopped = (trainer.store.directory_of(8) / name for trainer in (turning, short))
        assert best.read_bytes() == stopped.read_bytes()


class Killed(BaseException):
    """In place of SIGKILL."""


KILL_POINTS = [
    ("between validation and save", Trainer, "_save", 8),
    ("at the best, before its save is on the disk", CheckpointStore, "_write", 8),
    ("after the best", Trainer, "take_step", 9),
    ("at a later checkpoint", CheckpointStore, "_write", 20),
    ("at the end", CheckpointStore, "wait", 28),
]


@pytest.mark.parametrize(("where", "owner", "name", "step"), KILL_POINTS, ids=[point[0] for point in KILL_POINTS])
def test_a_kill_changes_neither_which_state_is_best_nor_a_bit_of_it(
    trainers: TrainerFactory, tmp_path: Path, where: str, owner: type, name: str, step: int
) -> None:
    alone = train(trainers(tmp_path / "alone", LONG))
    killed = trainers(tmp_path / "killed", LONG)
    real = getattr(owner, name)

    def kill(*arguments: object) -> object:
        if killed.step >= step:
            raise Killed
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            train(killed)
    killed.store.close()
    again = train(resumed(trainers, tmp_path / "killed", LONG))
    assert kept(again) == kept(alone)
    for directory in ("step-00000008", "step-00000028"):
        for file in sorted((alone.store.directory / directory).iterdir()):
            assert file.read_bytes() == (again.store.directory / directory / file.name).read_bytes(), (directory, file)


def test_a_damaged_best_is_said_and_the_next_validation_takes_its_place(
    trainers: TrainerFactory, tmp_path: Path
) -> None:
    trainer = train(trainers(tmp_path, LONG))
    (trainer.store.directory_of(8) / "model.safetensors").write_bytes(b"damaged")
    lines: list[str] = []
    checkpoint = trainer.store.newest(lines.append)
    assert checkpoint is not None
    assert (checkpoint.state.step, checkpoint.state.best) == (28, None)
    assert len(lines) == 1
    assert "it was the best state" in lines[0]
    assert kept(trainer) == [25, 28]


def test_a_damaged_newest_one_goes_back_to_one_that_still_has_its_best(
    trainers: TrainerFactory, tmp_path: Path
) -> None:
    improving = {step: 5.0 - step / 10 for step in TURNING}
    trainer = trainers(tmp_path, LONG)
    with validations(trainer, improving):
        run(trainer)
    assert kept(trainer) == [24, 25, 28]
    (trainer.store.directory_of(28) / "model.safetensors").write_bytes(b"damaged")
    lines: list[str] = []
    checkpoint = trainer.store.newest(lines.append)
    assert checkpoint is not None
    assert (checkpoint.state.step, checkpoint.state.best) == (25, BestValidation(24, improving[24]))
    assert len(lines) == 1


@pytest.mark.parametrize(("patience", "last"), [(1, 12), (3, 20), (5, 28), (6, 28), (None, 28)])
def test_patience_ends_a_stage_as_its_last_step_does(
    trainers: TrainerFactory, tmp_path: Path, patience: int | None, last: int
) -> None:
    trainer = train(trainers(tmp_path, replace(LONG, patience=patience)))
    assert trainer.step == last
    kinds = (Kind.STEP, Kind.SPEED, Kind.VALIDATION, Kind.SAMPLE, Kind.END)
    assert [recorded(trainer, kind)[-1] for kind in kinds] == [last] * len(kinds)
    assert newest(trainer.store).state.step == last
    assert 8 in kept(trainer)
    (end,) = (r.values for r in trainer.journal.records() if r.kind == Kind.END)
    assert end["reason"] == ("steps" if last == 28 else "patience")
    again = train(resumed(trainers, tmp_path, replace(LONG, patience=patience)))
    assert again.step == last  # a kill before it is marked as complete


def test_a_stage_that_goes_on_from_another_keeps_its_start_and_its_own_step_axis(
    trainers: TrainerFactory, tmp_path: Path
) -> None:
    before = train(trainers(tmp_path / "before", LONG))
    best = replace(newest(before.store), state=replace(newest(before.store).state, step=8, stage="another"))
    trainer = trainers(tmp_path / "after", first_step=28)
    trainer.restore(best)
    assert (trainer.done, trainer.step) == (0, 28)
    with validations(trainer, {28: 1.0, 32: 1.1, 36: 1.2, 40: 1.3}):
        run(trainer)
    assert recorded(trainer, Kind.STEP) == [29, 33, 38, 40]
    assert kept(trainer) == [28, 38, 40]
    start = trainer.store.directory_of(28)
    assert verify(start).best == BestValidation(28, 1.0)


def test_the_user_is_told_once_that_validation_gets_no_better(trainers: TrainerFactory, tmp_path: Path) -> None:
    trainer = train(trainers(tmp_path, LONG))
    lines = [r.values["message"] for r in trainer.journal.records() if r.kind == Kind.EVENT]
    assert len(lines) == 1
    assert "2.000 bits per byte at step 8, 2.800 now" in lines[0]
