"""Training through DVC on NVIDIA GPUs: killed, in two processes, and with sharded weights."""

import os
import re
import signal
import statistics
import subprocess
from pathlib import Path

import pytest
import torch
from support.clone import Clone, shared
from support.mlflow_runs import runs, steps
from support.process_groups import SHARDED, clone, losses, repro_killing
from support.training_runs import wait_for_step

from smollm.device.hardware import Hardware

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

STEPS = 1000  # of a few milliseconds each

ON_GPU = {
    "model.hidden_size": 128,
    "model.intermediate_size": 256,
    "model.num_attention_heads": 2,  # of 64
    "model.num_key_value_heads": 1,
    "pretrain.steps": STEPS,
    "pretrain.validate_every_steps": 250,
    "pretrain.sample_every_steps": 250,
    "runtime.device": "cuda",
    "runtime.precision": "auto",
    "runtime.compile": "auto",
    "runtime.checkpoint_every_steps": 100,
}


@pytest.fixture
def two_gpus(gpu: Hardware) -> None:
    """Skips the test where there is one GPU."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs")


def on_one_gpu() -> Clone:
    """A project that has trained on one GPU without a fault."""
    return Clone(shared("one-gpu", lambda directory: clone(directory, 1, **ON_GPU).repro()))


def assert_trained_alike(project: Clone) -> None:
    """The losses are those of one GPU, as far as rounding lets them, and MLflow has every step once, in one run."""
    found, expected = losses(project), losses(on_one_gpu())
    assert found[:10] == pytest.approx(expected[:10], rel=0.01)
    assert statistics.mean(found[-100:]) == pytest.approx(statistics.mean(expected[-100:]), rel=0.02)
    assert expected[0] - expected[-1] > 2
    (run,) = runs(project)["pretrain"]
    assert run.info.status == "FINISHED"
    assert steps(project, run.info.run_id, "train/loss") == list(range(1, STEPS + 1))


def test_a_killed_training_continues(gpu: Hardware, tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 1, **ON_GPU)
    with project.start("pretrain", stdout=subprocess.DEVNULL) as process:
        wait_for_step(project, process, 250)
        os.killpg(process.pid, signal.SIGKILL)
    output = project.dvc("repro").stdout
    assert re.search(r"resumed from step [2-9]00\n", output), output
    assert_trained_alike(project)


def test_two_gpus_train_as_one_does_and_go_on_when_either_process_is_killed(two_gpus: None, tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 2, **ON_GPU)
    repro_killing(project, {1: 250, 0: 600})
    assert_trained_alike(project)


def test_weights_sharded_over_two_gpus_train_as_on_one(two_gpus: None, tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 2, **ON_GPU, **SHARDED)
    project.repro("pretrain")
    assert_trained_alike(project)
