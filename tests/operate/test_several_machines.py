"""Several machines that train together, one of which has DVC; each is a folder of its own here."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from support.mlflow_runs import runs
from support.process_groups import (
    STEPS,
    agent,
    losses,
    rendezvous,
    start_without_dvc,
    two_machines,
    undisturbed,
    wait_for_workers,
)
from support.small_disk import fill, small_disk
from support.training_runs import last_step, wait_for_step

pytestmark = pytest.mark.slow


def test_two_machines_train_as_one_whatever_ends_them_before(tmp_path: Path) -> None:
    """Signals to either, then a killed process, then other params on one; the outputs are DVC's machine's."""
    here, there = two_machines(tmp_path)
    for signalled in (here, there):
        variables = rendezvous()
        with start_without_dvc(there, **variables) as other, here.start("pretrain", **variables) as process:
            wait_for_step(here, process, last_step(here.directory) + 2)
            os.kill(agent(signalled), signal.SIGTERM)
            output, _ = process.communicate(timeout=30)
            others, _ = other.communicate(timeout=30)
        stopped = re.findall(r"^ERROR: stopped by SIGTERM after step (\d+); its state is saved", output, re.M)
        assert stopped == [str(last_step(here.directory))], output
        assert re.findall(r"^ERROR: .*", others, re.M) == re.findall(r"^ERROR: stopped.*", output, re.M)
        assert process.returncode != 0
        assert other.returncode == 128 + signal.SIGTERM
        assert "Traceback" not in output + others

    there.set({"pretrain.optimizer.lr": 0.002})
    variables = rendezvous()
    with start_without_dvc(there, **variables) as other:
        refused = here.dvc("repro", "pretrain", check=False, **variables)
        others, _ = other.communicate(timeout=90)
    assert "must have the same params, code, data and torch, got lr=0.00" in refused.stdout + others
    assert refused.returncode != 0
    assert other.returncode != 0

    there.run("git", "checkout", "-q", "params.yaml")
    variables = rendezvous()
    with start_without_dvc(there, **variables) as other, here.start("pretrain", **variables) as process:
        (victim,) = wait_for_workers(there, 1)
        wait_for_step(here, process, int(stopped[0]) + 2)
        os.kill(victim, signal.SIGKILL)
        assert last_step(here.directory) < STEPS, "killed too late"
        output, _ = process.communicate()
        others, _ = other.communicate(timeout=60)
    assert (process.returncode, other.returncode) == (0, 0), output + others
    assert f"resumed from step {stopped[0]}\n" in output
    assert "2 processes" in output
    assert "all were restarted from the last checkpoint, restart 1 of 3" in output
    assert "Traceback" not in output + others
    assert losses(here) == pytest.approx(losses(undisturbed(1)), rel=1e-4)
    assert not (there.directory / "checkpoints").exists() or not list((there.directory / "checkpoints").iterdir())
    assert len(runs(here)["pretrain"]) == 1
    assert json.loads((here.directory / "reports/pretrain/run.json").read_text())["mlflow_run_id"]


def test_what_fails_on_one_machine_alone_ends_all_with_its_line(tmp_path: Path) -> None:
    """A device that the second one lacks, then a full disk of the first one."""
    here, there = two_machines(tmp_path)
    there.set({"runtime.device": "mps"})
    variables = rendezvous()
    with start_without_dvc(there, **variables) as other:
        refused = here.dvc("repro", "pretrain", check=False, **variables)
        others, _ = other.communicate(timeout=60)
    (line,) = re.findall(r"^ERROR: .*", others, re.M)
    assert line.startswith("ERROR: params.yaml: runtime.device must be a device of this machine, got 'mps'")
    assert refused.stdout.count(line) == 1, refused.stdout
    assert refused.returncode != 0

    there.run("git", "checkout", "-q", "params.yaml")
    variables = rendezvous()
    with (
        small_disk(here.directory / ".resume", 16384),
        start_without_dvc(there, **variables) as other,
        here.start("pretrain", **variables) as process,
    ):
        wait_for_step(here, process, 12)
        fill(here.directory / ".resume" / "filler")
        output, _ = process.communicate(timeout=60)
        others, _ = other.communicate(timeout=30)
    line = re.findall(r"^ERROR: the disk is full.*", output, re.M)
    assert len(line) == 1, output
    assert re.findall(r"^ERROR: .*", others, re.M) == line
    assert process.returncode != 0
    assert other.returncode != 0
    assert "Traceback" not in output + others
