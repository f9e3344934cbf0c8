"""What a training stage says before its first step."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.trainers import EVALUATION, RUNTIME, TRAINING

from smollm.config.model import ModelConfig
from smollm.device.hardware import Hardware
from smollm.state.files import write_json
from smollm.training.plan import plan_lines
from smollm.training.settings import Settings


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Its text has 1280 tokens to train on: 20 of TRAINING's steps of 64."""
    write_json(tmp_path / "data/tokens/pretrain/manifest.json", {"train": {"tokens": 1280}})
    return tmp_path


def test_epochs_are_counted_and_a_decay_in_epochs_is_told(
    workspace: Path, model_config: ModelConfig, cpu: Hardware
) -> None:
    optimizer = replace(TRAINING.optimizer, weight_decay=10.0, weight_decay_epochs=0.5)
    settings = Settings("pretrain", 1, model_config, replace(TRAINING, optimizer=optimizer), EVALUATION, RUNTIME)
    first, *others = plan_lines(settings, workspace, None, 0, cpu, 1)
    assert first.startswith("12 steps (to step 12) of 64 tokens")
    assert others == [
        "12 steps are 0.6 epochs of pretrain's text",
        "weight decay 10, since weight_decay_epochs is 0.5",
    ]


def test_a_decay_by_itself_needs_no_line(workspace: Path, model_config: ModelConfig, cpu: Hardware) -> None:
    settings = Settings("pretrain", 1, model_config, TRAINING, EVALUATION, RUNTIME)
    assert plan_lines(settings, workspace, None, 0, cpu, 1)[1:] == ["12 steps are 0.6 epochs of pretrain's text"]
