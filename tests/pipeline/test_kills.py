"""kill -9 anywhere, and signals: `dvc repro` again gives what a run left alone gives, bit for bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.kill_points import KILL_POINTS
from support.structure import ROOT
from support.training_runs import assert_equals_undisturbed, clone, wait_for_step

A_FEW = {
    "gradient of step 8 is there": None,
    "first file of a checkpoint is written": 5,
    "pretrain ends": 5,
}
"""Kill points in their order, with the step from which the killed process itself had resumed."""

ALL = {
    "tokenizer is trained": None,
    "first file of tokens is digested": None,
    "second file of tokens is digested": None,
    "second output of tokenize is published": None,
    "tokenize ends": None,
    "gradient of step 8 is there": None,
    "first step of a start begins": 5,
    "first file of a checkpoint is written": 5,  # of step 10
    "validation is measured": 5,  # at step 10
    "checkpoint is written": 5,  # of step 10
    "fifth token of a sample is drawn": 10,  # at step 14
    "model is exported": 10,
    "pretrain ends": None,
    "gradient of finetune's step 7 is there": None,
    "finetune ends": 65,
}


def test_the_list_of_all_kill_points_is_complete() -> None:
    assert ALL.keys() == KILL_POINTS.keys()


@pytest.mark.parametrize("points", [A_FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["a few", "all"])
def test_a_kill_at_any_point_changes_nothing(points: dict[str, int | None], tmp_path: Path) -> None:
    """Point after point in one project; each start goes on from the step that it must go on from."""
    killed = clone(tmp_path / "project", with_tokens=points is A_FEW, pretrain=60, finetune=8)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/support/kill_points.py" "$@"\n')
    python.chmod(0o755)
    for point, resumed in points.items():
        with killed.start(KILL_AT=point, first_on_path=str(tmp_path / "bin")) as process:
            output, _ = process.communicate()
        assert process.returncode != 0, f"{point}\n{output}"
        assert "Traceback" not in output, f"{point}\n{output}"
        steps = re.findall(r"resumed from step (\d+)", output)
        assert steps == ([str(resumed)] if resumed else []), f"{point}\n{output}"
    output = killed.dvc("repro").stdout
    assert f"{KILL_POINTS[point].stage}: already finished; publishing its outputs again" in output
    log = (killed.directory / "reports" / "pretrain" / "training_log.txt").read_text()
    starts = [str(step) for point, step in points.items() if step and KILL_POINTS[point].stage == "pretrain"]
    assert re.findall(r"step (\d+)  hardware", log) == ["0", *starts]
    assert_equals_undisturbed(killed, pretrain=60, finetune=8)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_is_no_success_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    stopped = clone(tmp_path / "project", pretrain=60, finetune=8)
    with stopped.start() as process:
        wait_for_step(stopped, process, 12)
        os.killpg(process.pid, number)
        output, _ = process.communicate()
    assert process.returncode != 0
    step = re.search(rf"stopped by {number.name} after step (\d+); its state is saved", output)
    assert step, output[-2000:]
    assert list(yaml.safe_load((stopped.directory / "dvc.lock").read_text())["stages"]) == ["tokenize"]
    assert f"resumed from step {step.group(1)}\n" in stopped.dvc("repro").stdout
    assert_equals_undisturbed(stopped, pretrain=60, finetune=8)


@pytest.mark.slow
def test_an_orphan_is_named_and_finishes_alone(tmp_path: Path) -> None:
    """kill -9 of DVC alone."""
    project = clone(tmp_path / "project", pretrain=60, finetune=8)
    with project.start(stdout=subprocess.DEVNULL) as process:
        wait_for_step(project, process, 10)
        (lock,) = project.directory.glob(".resume/pretrain/*/lock")
        orphan = json.loads(lock.read_text())["pid"]
        os.kill(orphan, signal.SIGSTOP)  # so that it is at it for as long as it takes
        process.kill()
    refused = project.dvc("repro", check=False)
    os.kill(orphan, signal.SIGCONT)
    assert refused.returncode != 0
    assert (
        f"already running in this workspace as process {orphan}; let it finish, or stop it with `kill {orphan}`"
        in refused.stdout
    )
    deadline = time.monotonic() + 120
    while not list(project.directory.glob(".resume/pretrain/*/complete")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    output = project.dvc("repro").stdout
    assert "already finished; publishing its outputs again" in output
    assert_equals_undisturbed(project, pretrain=60, finetune=8)
