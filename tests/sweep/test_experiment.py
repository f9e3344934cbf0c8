"""What is known of a trial from its log, its live state, its processes and DVC's commit."""

import json
import subprocess
from pathlib import Path

import pytest

from smollm.state.journal import Journal, Kind
from smollm.state.workspace import Workspace
from smollm.sweep.experiment import Experiment, Validation, wait_until_ended

DVC = """
import json, os, pathlib, socket, time
state = pathlib.Path(".resume/pretrain/0123")
holder = {"workspace": ".dvc/tmp/exps/standalone/tmp1", "pid": os.getpid(), "host": socket.gethostname()}
(state / "lock").write_text(json.dumps(holder))
print("Running stage 'pretrain':", os.environ["OF_DVC"], flush=True)
time.sleep(600)
"""
"""Stands for the stage, a child of DVC's: it holds a live state until it is stopped."""


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """A trial that has not begun, in an empty repository."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".resume/pretrain/0123").mkdir(parents=True)
    return Experiment("rates-0", "pretrain", Workspace(tmp_path, tmp_path), tmp_path / "rates-0.log")


def test_the_log_says_how_far_dvc_is_and_why_it_ended(experiment: Experiment) -> None:
    assert not experiment.has_begun and experiment.was_killed
    experiment.log.write_text("ERROR: Unable to acquire lock. Most likely another DVC process is running\n")
    assert experiment.was_shut_out and not experiment.was_killed
    experiment.log.write_text(
        "Running stage 'pretrain':\nERROR: the disk is full\nERROR: failed to reproduce 'pretrain'\n"
    )
    assert experiment.has_begun and not experiment.was_shut_out
    assert experiment.error == "the disk is full"


@pytest.mark.parametrize(
    ("line", "was_stopped"),
    [
        ("stopped by SIGTERM; `dvc repro` continues", True),
        ("stopped by its tag `stop` in MLflow after step 7; its state is saved, and `dvc repro` continues", True),
        ("pretrain: stopped by SIGTERM; `dvc repro` continues from the last checkpoint", True),
        ("the disk is full", False),
    ],
)
def test_a_trial_that_was_stopped_is_known_by_its_line(experiment: Experiment, line: str, was_stopped: bool) -> None:
    experiment.log.write_text(f"Running stage 'pretrain':\n\nERROR: {line}\nERROR: failed to reproduce 'pretrain'\n")
    assert experiment.was_stopped is was_stopped


def test_the_result_is_that_of_dvcs_commit(experiment: Experiment, tmp_path: Path) -> None:
    assert experiment.result() is None
    (tmp_path / "reports/pretrain").mkdir(parents=True)
    (tmp_path / "reports/pretrain/metrics.json").write_text(json.dumps({"best_bits_per_byte": 1.5}))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run([*git, "add", "reports"], check=True)
    subprocess.run([*git, "commit", "-qm", "result"], check=True)
    subprocess.run([*git, "update-ref", "refs/exps/ab/cdef/rates-00", "HEAD"], check=True)
    assert experiment.result() is None, "of another trial"
    subprocess.run([*git, "update-ref", "refs/exps/ab/cdef/rates-0", "HEAD"], check=True)
    assert experiment.result() == 1.5


def test_a_trial_is_watched_found_again_and_stopped(experiment: Experiment, tmp_path: Path) -> None:
    program = tmp_path / "dvc"
    program.mkdir()
    (program / "__init__.py").touch()
    (program / "__main__.py").write_text(
        "import os, subprocess, sys\n"
        "os.environ['OF_DVC'] = ' '.join(sys.argv)\n"  # in its own arguments they would let it pass for DVC
        f"subprocess.run([sys.executable, '-c', {DVC!r}])\n"
    )
    experiment.start({"pretrain.optimizer.lr": 1e-3}, {"PYTHONPATH": str(tmp_path)})
    while not experiment.has_begun:
        assert experiment.poll()
    assert "-S pretrain.optimizer.lr=0.001 pretrain" in experiment.log.read_text()
    state = tmp_path / ".resume/pretrain/0123"
    journal = Journal(state / "journal.jsonl")
    journal.append(Kind.VALIDATION, 100, bits_per_byte=3.0)
    journal.append(Kind.VALIDATION, 110, bits_per_byte=2.0)

    again = Experiment("rates-0", "pretrain", Workspace(tmp_path, tmp_path), experiment.log)
    assert again.poll(), "a sweep that was killed has left it behind"
    assert list(again.validations()) == [Validation(0, 3.0), Validation(10, 2.0)]
    again.prune(10)
    assert (state / "pruned").read_text() == "pruned by its study: others were better at step 10"
    assert wait_until_ended([again, experiment], 60)
    assert not again.has_diverged
    assert not Experiment("rates-0", "pretrain", Workspace(tmp_path, tmp_path), experiment.log).poll()
