"""What a stage reads of tokenize's outputs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from support.trainers import TRAINING

from smollm.config.training import ScheduleConfig
from smollm.errors import ConfigError
from smollm.state.files import write_json
from smollm.training.data import resolve_epochs


def written(workspace: Path, tokens: int) -> Path:
    """A workspace in which pretrain's text has so many tokens to train on."""
    directory = workspace / "data" / "tokens" / "pretrain"
    directory.mkdir(parents=True)
    write_json(directory / "manifest.json", {"train": {"tokens": tokens}})
    return workspace


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 16), (2.5, 39), (0.001, 1)])
def test_epochs_are_as_many_steps_as_read_the_text_so_often(epochs: float, steps: int, tmp_path: Path) -> None:
    training = replace(TRAINING, steps=None, epochs=epochs, schedule=ScheduleConfig(0, 0.5, 0.0))
    resolved = resolve_epochs(training, "pretrain", written(tmp_path, 1000))  # 4 x 16 tokens a step
    assert resolved == replace(training, steps=steps)


def test_epochs_are_of_the_stages_own_text_whatever_is_replayed(tmp_path: Path) -> None:
    training = replace(TRAINING, steps=None, epochs=2.5, schedule=ScheduleConfig(0, 0.5, 0.0), replay_fraction=0.25)
    resolved = resolve_epochs(training, "pretrain", written(tmp_path, 1000))  # 3 x 16 of its own tokens a step
    assert resolved.steps == 52


@pytest.mark.parametrize("tokens", [1000, 4000])
def test_a_weight_decay_in_epochs_takes_a_matrix_to_1_e_in_so_many(tokens: int, tmp_path: Path) -> None:
    optimizer = replace(TRAINING.optimizer, weight_decay=None, weight_decay_epochs=0.5)
    resolved = resolve_epochs(replace(TRAINING, optimizer=optimizer), "pretrain", written(tmp_path, tokens))
    assert resolved.optimizer.weight_decay is not None
    a_step = 1 - resolved.optimizer.weight_decay * optimizer.lr
    assert a_step ** (0.5 * tokens / TRAINING.tokens_per_step) == pytest.approx(math.exp(-1), rel=0.1)
    assert replace(resolved, optimizer=optimizer) == replace(TRAINING, optimizer=optimizer)


def test_epochs_of_length_and_of_weight_decay_resolve_together(tmp_path: Path) -> None:
    optimizer = replace(TRAINING.optimizer, lr=0.01, weight_decay=None, weight_decay_epochs=0.5)
    training = replace(TRAINING, steps=None, epochs=2.0, optimizer=optimizer, schedule=ScheduleConfig(0, 0.5, 0.0))
    resolved = resolve_epochs(training, "pretrain", written(tmp_path, 1280))  # 20 steps an epoch
    assert (resolved.steps, resolved.optimizer.weight_decay) == (40, pytest.approx(10.0))


def test_a_number_of_steps_needs_no_text(tmp_path: Path) -> None:
    assert resolve_epochs(TRAINING, "pretrain", tmp_path) is TRAINING


def test_a_warm_up_longer_than_the_epochs_is_refused(tmp_path: Path) -> None:
    training = replace(TRAINING, steps=None, epochs=1.0, schedule=ScheduleConfig(9, 0.5, 0.0))
    with pytest.raises(ConfigError) as caught:
        resolve_epochs(training, "pretrain", written(tmp_path, 1000))
    assert str(caught.value) == (
        "params.yaml: pretrain.schedule.warmup_steps must leave room for the decay: at most 8 of the 16 steps, got 9; "
        "use 8 or fewer"
    )
