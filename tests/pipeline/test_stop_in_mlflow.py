"""A run that a user stops from its page in MLflow, by its tag, as MLflow's client sets it."""

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.clone import Clone
from support.mlflow_runs import client, runs, steps
from support.training_runs import clone

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Clone:
    """Two processes, each step of which is recorded, and steps enough to be stopped among them."""
    project = clone(tmp_path / "project", pretrain=1000, finetune=8)
    rare = {f"pretrain.{what}_every_steps": 1000 for what in ("sample", "validate")}
    project.set({**rare, "runtime.checkpoint_every_steps": 1000, "runtime.processes": 2, "runtime.micro_batch_size": 3})
    return project


def run_in_training(project: Clone, process: "subprocess.Popen[str]") -> Any:
    """The run of `pretrain`, once MLflow has a step of it."""
    while True:
        assert process.poll() is None, "ended before it was stopped"
        for run in runs(project).get("pretrain", []) if client(project).get_experiment_by_name("smollm") else []:
            if "train/loss" in run.data.metrics:
                return run
        time.sleep(0.1)


def test_a_run_stopped_by_its_tag_saves_its_state_and_is_continued(project: Clone) -> None:
    with project.start() as process:
        run = run_in_training(project, process)
        client(project).set_tag(run.info.run_id, "stop", "true")
        output, _ = process.communicate()
    assert process.returncode != 0
    errors = re.findall(r"^ERROR: (?!failed to reproduce)(.*)$", output, re.M)
    assert len(errors) == 1, output
    stopped = re.match(
        r"stopped by its tag `stop` in MLflow after step (\d+); its state is saved, and `dvc repro`", errors[0]
    )
    assert stopped, output
    assert "Traceback" not in output
    (run,) = runs(project)["pretrain"]
    assert run.info.status == "KILLED"
    assert "stop" not in run.data.tags
    assert run.data.tags["error"] == f"Interrupted: {errors[0]}"
    assert f"resumed from step {stopped.group(1)}\n" in project.dvc("repro").stdout
    (run,) = runs(project)["pretrain"]
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    assert steps(project, run.info.run_id, "train/loss") == list(range(1, 1001))
    assert runs(project)["finetune"][0].info.status == "FINISHED"
