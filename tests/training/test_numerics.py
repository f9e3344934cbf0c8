"""Numbers that are not finite, and half precision."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.trainers import TOKENS, TRAINING, TrainerFactory, run

from smollm.config.runtime import Precision
from smollm.errors import NonFinite, TrainingError
from smollm.state.journal import Kind
from smollm.training.trainer import Trainer


def poison(trainer: Trainer, token: int) -> None:
    """Make the loss of every sequence that begins with `token` not a number, from the third step on."""
    real = trainer.model.loss

    def loss(ids: torch.Tensor, targets: torch.Tensor, seeds: torch.Tensor | None = None) -> torch.Tensor:
        good = real(ids, targets)
        is_bad = trainer.step == 2 and bool((ids[:, 0] == token).any())
        return good * float("nan") if is_bad else good

    trainer.model.loss = loss  # type: ignore[method-assign]
    trainer.model.training_loss = lambda ids, targets, _: (loss(ids, targets),) * 2  # type: ignore[method-assign]


def test_numbers_that_are_not_finite_stop_before_the_step_and_name_its_sequences(
    trainers: TrainerFactory, tmp_path: Path
) -> None:
    trainer = trainers(tmp_path)
    starts = [start for _, start in trainer.data.batches.places(3)]
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


def test_a_gradient_that_is_not_finite_stops_too(trainers: TrainerFactory, tmp_path: Path) -> None:
    trainer = trainers(tmp_path)
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFinite, match=r"got loss [\d.]+ and gradient norm (inf|nan) at step 1"):
        run(trainer)


def test_an_overflow_in_fp16_skips_the_step_for_every_parameter_and_lowers_the_scale(
    trainers: TrainerFactory, tmp_path: Path
) -> None:
    trainers.hardware = replace(trainers.hardware, precision=Precision.FP16)
    trainer = trainers(tmp_path)
    trainer.loss_scale.scaler.load_state_dict({**trainer.loss_scale.scaler.state_dict(), "scale": 2.0**40})
    before = {name: value.detach().clone() for name, value in trainer.model.weights().items()}
    _, norm = trainer.take_step(0.01)
    assert not np.isfinite(norm)
    assert trainer.loss_scale.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.weights().items())
    trainer.done += 1
    trainer.take_step(0.01)
    skips = [(r.step, r.values) for r in trainer.journal.records() if r.kind == Kind.SKIP]
    assert skips == [(1, {"loss_scale": 2.0**40, "total": 1}), (2, {"loss_scale": 2.0**39, "total": 2})]


def test_skips_of_a_killed_process_are_counted_once(trainers: TrainerFactory, tmp_path: Path) -> None:
    trainers.hardware = replace(trainers.hardware, precision=Precision.FP16)
    first = trainers(tmp_path)
    for step in (2, 9):
        first.journal.append(Kind.SKIP, step, loss_scale=2.0, total=step)
    again = trainers(tmp_path)
    again.done = 5
    again.loss_scale.scaler.load_state_dict({**again.loss_scale.scaler.state_dict(), "scale": 2.0**40})
    again.take_step(0.01)
    (last,) = [r.values for r in again.journal.records() if r.kind == Kind.SKIP and r.step == 6]
    assert last["total"] == 2


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_half_precision_follows_float32(trainers: TrainerFactory, tmp_path: Path, precision: Precision) -> None:
    training = replace(TRAINING, steps=60, validate_every_steps=10)
    exact = run(trainers(tmp_path / "fp32", training))
    trainers.hardware = replace(trainers.hardware, precision=precision)
    half = run(trainers(tmp_path / "half", training))
    losses = [[r.values["loss"] for r in t.journal.records() if r.kind == Kind.VALIDATION] for t in (exact, half)]
    assert losses[0] != losses[1]
    assert losses[0][-1] < losses[0][0] - 0.5
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


@pytest.mark.parametrize("where", ["validation", "weights"])
def test_what_the_last_step_ruined_is_not_saved(trainers: TrainerFactory, tmp_path: Path, where: str) -> None:
    trainer = trainers(tmp_path)
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
    assert checkpoint.state.step == (10 if where == "validation" else 8)  # 8 is the best state


def test_the_loss_scale_is_carried_over_a_resume(trainers: TrainerFactory, tmp_path: Path) -> None:
    trainers.hardware = replace(trainers.hardware, precision=Precision.FP16)
    first = run(trainers(tmp_path))
    again = trainers(tmp_path)
    checkpoint = again.store.newest(pytest.fail)
    assert checkpoint is not None
    again.restore(checkpoint)
    assert checkpoint.state.clean_steps == 12
    assert again.loss_scale.scaler.state_dict() == first.loss_scale.scaler.state_dict()


def test_fp16_that_never_finds_a_scale_ends_with_one_line(trainers: TrainerFactory, tmp_path: Path) -> None:
    trainers.hardware = replace(trainers.hardware, precision=Precision.FP16)
    trainer = trainers(tmp_path, replace(TRAINING, steps=100))
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"the gradient overflowed at every loss scale, 50 steps in a row"):
        run(trainer)
