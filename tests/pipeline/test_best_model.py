"""The state that a user gets: the best one, of a stage that ends early, whatever was killed on the way."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.clone import Clone
from support.mlflow_runs import runs, steps
from support.training_runs import TRAINING_STAGES, clone, exact_outputs, wait_for_step

pytestmark = pytest.mark.slow

TURNING = {
    "pretrain.patience": 2,
    "pretrain.schedule.warmup_steps": 8,
    "pretrain.optimizer.lr": 0.3,
    "pretrain.optimizer.embedding_lr": 0.3,
    "finetune.optimizer.lr": 10.0,
    "finetune.optimizer.embedding_lr": 10.0,
}
"""Rates so high that pretrain turns before its last step, and finetune is worse from its first."""


def project(directory: Path) -> Clone:
    made = clone(directory, pretrain=60, finetune=5)
    made.set(TURNING)
    made.commit("rates")
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    undisturbed = project(tmp_path_factory.mktemp("alone") / "project")
    (undisturbed.directory / "output.txt").write_text(undisturbed.dvc("repro").stdout)
    return undisturbed


def weights(project: Clone, folder: str) -> dict[str, torch.Tensor]:
    return load_file(project.directory / folder / "model.safetensors")


def is_model_of(project: Clone, model: str, checkpoint: str) -> bool:
    """Whether `model` is the bf16 of `checkpoint`."""
    half, full = weights(project, model), weights(project, checkpoint)
    return half.keys() == full.keys() and all(torch.equal(half[name], full[name].bfloat16()) for name in half)


def test_a_stage_that_ends_early_is_finished_and_its_model_the_best(alone: Clone) -> None:
    metrics = alone.json("reports/pretrain/metrics.json")
    bits_per_byte = {int(row[0]): float(row[2]) for row in alone.rows("reports/pretrain/validation.tsv")}
    best = min(bits_per_byte, key=lambda step: bits_per_byte[step])
    assert 0 < best < metrics["step"] < 60
    assert (metrics["best_step"], metrics["exported_step"], metrics["step"]) == (best, best, best + 10)
    assert metrics["exported_bits_per_byte"] == metrics["best_bits_per_byte"] == bits_per_byte[best]
    assert metrics["bits_per_byte"] == bits_per_byte[best + 10]
    assert metrics["tokens"] == (best + 10) * 6 * 32
    for which, step in (("best", best), ("last", best + 10)):
        assert alone.json(f"checkpoints/pretrain/{which}/trainer_state.json")["step"] == step
    assert is_model_of(alone, "models/pretrain", "checkpoints/pretrain/best")
    assert f"\n{best}\t" in (alone.directory / "reports/pretrain/samples.tsv").read_text()
    assert f"best, step {best}" in (alone.directory / "reports/pretrain/loss.svg").read_text()
    assert alone.repro() == [], "DVC has nothing to do"
    (run,) = runs(alone)["pretrain"]
    assert run.info.status == "FINISHED"
    assert steps(alone, run.info.run_id, "train/loss")[-1] == best + 10
    output = (alone.directory / "output.txt").read_text()
    assert f"pretrain: stopped early: none of 2 validations was better than step {best}'s" in output
    assert f"models/pretrain/ of step {best}, {bits_per_byte[best]:.3f} bits per byte" in output


def test_finetune_starts_from_the_best_and_ships_nothing_worse_without_saying_so(alone: Clone) -> None:
    pretrain, finetune = (alone.json(f"reports/{stage}/metrics.json") for stage in TRAINING_STAGES)
    first = pretrain["step"]
    assert [int(row[0]) for row in alone.rows("reports/finetune/losses.tsv")] == list(range(first + 1, first + 6))
    assert (finetune["best_step"], finetune["exported_step"], finetune["step"]) == (first, first, first + 5)
    assert finetune["bits_per_byte"] > finetune["exported_bits_per_byte"] == finetune["initial_bits_per_byte"]
    assert weights(alone, "models/finetune").keys() == weights(alone, "models/pretrain").keys()
    assert is_model_of(alone, "models/finetune", "checkpoints/pretrain/best")
    output = (alone.directory / "output.txt").read_text()
    assert f"finetune: starting from pretrain's checkpoint at step {pretrain['best_step']}" in output
    assert "finetune: no step improved on what the stage started from" in output


def test_kills_change_nothing_of_it(alone: Clone, tmp_path: Path) -> None:
    killed = project(tmp_path / "project")
    best = alone.json("reports/pretrain/metrics.json")["best_step"]
    for step in (best - 2, best, best + 8):
        with killed.start() as process:
            wait_for_step(killed, process, step)
            while step > best and not list(killed.directory.glob(".resume/pretrain/*/checkpoints/step-*")):
                assert process.poll() is None, "ended before it was killed"
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert "pretrain: resumed from step " in killed.dvc("repro").stdout
    for path in [path for stage in TRAINING_STAGES for path in exact_outputs(stage)]:
        assert (killed.directory / path).read_bytes() == (alone.directory / path).read_bytes(), path


def test_the_last_state_is_exported_and_started_from_where_that_is_asked_for(alone: Clone) -> None:
    before = alone.json("reports/pretrain/metrics.json")
    alone.set({"pretrain.export": "last", "finetune.start": "last", "finetune.export": "last"})
    output = alone.dvc("repro").stdout
    metrics = alone.json("reports/pretrain/metrics.json")
    assert metrics == {
        **before,
        "exported_step": before["step"],
        "exported_bits_per_byte": before["bits_per_byte"],
    }
    assert is_model_of(alone, "models/pretrain", "checkpoints/pretrain/last")
    assert is_model_of(alone, "models/finetune", "checkpoints/finetune/last")
    assert f"finetune: starting from pretrain's checkpoint at step {before['step']}" in output
    assert "finetune: models/finetune is worse on its own held-out text than what the stage started from" in output
