"""Signals to a running stage, and a trainer that outlives DVC."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from test_pipeline import runs
from workspace import Clone

STEPS = 90


def clone(directory: Path) -> Clone:
    made = Clone.of_working_tree(directory)
    made.set({"pretrain.steps": STEPS, "pretrain.log_every_steps": 1})
    made.commit("params")
    return made


def journal(directory: Path) -> bytes:
    """The journal of `pretrain`, empty before there is one."""
    return b"".join(path.read_bytes() for path in directory.glob(".resume/pretrain/*/journal.jsonl"))


def last_step(directory: Path) -> int:
    """The last step in the journal of `pretrain`, 0 before it has one."""
    found = re.findall(rb'"kind": "step", "step": (\d+)', journal(directory))
    return int(found[-1]) if found else 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_is_no_success_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    stopped = clone(tmp_path / "project")
    with stopped.start() as process:
        while last_step(stopped.directory) < 12:
            assert process.poll() is None
            time.sleep(0.002)
        os.killpg(process.pid, number)
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait() != 0
    step = re.search(rf"stopped by {number.name} after step (\d+), all of it saved", said)
    assert step, said[-2000:]
    assert "pretrain" not in (stopped.directory / "dvc.lock").read_text().split("stages:")[1].split("params:")[0]
    assert f"resumed from step {step.group(1)}\n" in stopped.dvc("repro").stdout


@pytest.mark.slow
def test_an_orphan_is_named_and_finishes_alone(tmp_path: Path) -> None:
    project = clone(tmp_path / "project")
    project.set({"pretrain.steps": 2500, "pretrain.log_every_steps": 5})
    with project.start() as process:
        while last_step(project.directory) < 10:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    refused = project.dvc("repro", check=False)
    assert refused.returncode != 0
    pid = re.search(r"got process (\d+) still at it; let it finish, or stop it with `kill \1`", refused.stdout)
    assert pid, refused.stdout[-2000:]
    while Path(f"/proc/{pid.group(1)}").exists():
        time.sleep(0.2)
    output = project.dvc("repro").stdout
    assert "finished before; publishing its outputs again" in output
    assert len(runs(project)["pretrain"]) == 1
