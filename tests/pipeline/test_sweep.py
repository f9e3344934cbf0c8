"""A study for real: trials run by DVC, stopped by the pruner, killed, continued, tracked, and the best applied."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.clone import Clone, environment
from support.mlflow_runs import runs
from support.training_runs import clone, last_step, resumes

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow

STUDY = {
    "stage": "pretrain",
    "trials": 3,
    "sampler": "random",
    "seed": 2,
    "pruner": {"kind": "median", "first_trials": 1, "first_step": 20},
    "params": {"pretrain.optimizer.lr": {"choices": [1.0e-2, 1.0e-7]}},
}
"""Its trials have the better rate, the worse, and the better again, which DVC then has already."""


def start(project: Clone) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "smollm.sweep", "sweeps/rates.yaml"],
        cwd=project.directory,
        env={**environment(), "PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(project: Clone, sweep: "subprocess.Popen[str]", step: int) -> None:
    while last_step(project.directory) < step:
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.05)


def processes_of(project: Clone) -> list[int]:
    """All processes that run in the project or one of its temporary folders."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(project.directory):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_study_is_killed_twice_and_counts_each_trial_once(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", pretrain=120, finetune=8)
    (project.directory / "sweeps" / "rates.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))

    sweep = start(project)
    wait_for(project, sweep, 20)
    sweep.kill()
    sweep.communicate()
    sweep = start(project)
    wait_for(project, sweep, 60)
    assert not resumes(project.directory, "pretrain"), "the trial was left running, and is watched"
    for pid in processes_of(project):
        os.kill(pid, signal.SIGKILL)
    sweep.communicate()
    sweep = start(project)
    wait_for(project, sweep, 80)
    assert resumes(project.directory, "pretrain"), "it goes on from a checkpoint"
    output, _ = sweep.communicate()
    assert sweep.returncode == 0, output

    assert "rates-0 complete" in output and "is stopped at step" in output
    table = [line.split() for line in output.splitlines() if line.startswith("rates-") or line.startswith(" rates-")]
    outcomes = {words[0]: words[1] for words in table if words[1] in ("complete", "stopped")}
    assert len(outcomes) == 3 and outcomes["rates-0"] == "complete" and "stopped" in outcomes.values()
    complete = sorted(name for name, outcome in outcomes.items() if outcome == "complete")
    assert sorted(project.dvc("exp", "list", "--name-only").stdout.split()) == complete
    assert not [path for path in (project.directory / ".resume" / "pretrain").iterdir() if path.name[0] != "."]

    found = runs(project)
    (parent,) = found["sweep"]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best.trial"] in complete
    children = {run.data.tags["dvc.experiment"]: run for run in found["pretrain"]}
    assert set(children) <= set(outcomes)
    assert len(found["pretrain"]) == len(children)
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert children["rates-0"].info.status == "FINISHED"
    pruned = next(name for name, outcome in outcomes.items() if outcome == "stopped")
    assert (
        children[pruned].data.tags["error"].startswith("Interrupted: pruned by its study: others were better at step")
    )

    again = start(project)
    assert "rates-0" in again.communicate()[0], "nothing is left but the table"
    project.dvc("exp", "apply", parent.data.tags["best.trial"], check=False)  # DVC misses finetune's outputs
    applied = yaml.safe_load((project.directory / "params.yaml").read_text())
    assert applied["pretrain"]["optimizer"]["lr"] == 0.01
    assert project.json("reports/pretrain/metrics.json")["best_bits_per_byte"] == pytest.approx(
        float(parent.data.tags["best.bits_per_byte"])
    )
