"""What a stage reads of tokenize's outputs."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.trainers import TRAINING

from smollm.config.training import ScheduleConfig
from smollm.errors import ConfigError
from smollm.state.files import write_json
from smollm.training.data import resolve_steps


def written(workspace: Path, tokens: int) -> Path:
    """A workspace in which pretrain's text has so many tokens to train on."""
    directory = workspace / "data" / "tokens" / "pretrain"
    directory.mkdir(parents=True)
    write_json(directory / "manifest.json", {"train": {"tokens": tokens}})
    return workspace


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 16), (2.5, 39), (0.001, 1)])
def test_epochs_are_as_many_steps_as_read_the_text_so_often(epochs: float, steps: int, tmp_path: Path) -> None:
    training = replace(TRAINING, steps=None, epochs=epochs, schedule=ScheduleConfig(0, 0.5, 0.0))
    resolved = resolve_steps(training, "pretrain", written(tmp_path, 1000))  # 4 x 16 tokens a step
    assert resolved == replace(training, steps=steps)


def test_epochs_are_of_the_stages_own_text_whatever_is_replayed(tmp_path: Path) -> None:
    training = replace(TRAINING, steps=None, epochs=2.5, schedule=ScheduleConfig(0, 0.5, 0.0), replay_fraction=0.25)
    resolved = resolve_steps(training, "pretrain", written(tmp_path, 1000))  # 3 x 16 of its own tokens a step
    assert resolved.steps == 52


def test_a_number_of_steps_needs_no_text(tmp_path: Path) -> None:
    assert resolve_steps(TRAINING, "pretrain", tmp_path) is TRAINING


def test_a_warm_up_longer_than_the_epochs_is_refused(tmp_path: Path) -> None:
    training = replace(TRAINING, steps=None, epochs=1.0, schedule=ScheduleConfig(9, 0.5, 0.0))
    with pytest.raises(ConfigError) as caught:
        resolve_steps(training, "pretrain", written(tmp_path, 1000))
    assert str(caught.value) == (
        "params.yaml: pretrain.schedule.warmup_steps must leave room for the decay: at most 8 of the 16 steps, got 9; "
        "use 8 or fewer"
    )
