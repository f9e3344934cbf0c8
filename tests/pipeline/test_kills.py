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
from support.structure import ROOT
from support.training_runs import assert_equals_undisturbed, clone, wait_for_step

POINTS = [  # with the step that the killed process was resumed from
    ("tokenize smollm.corpus.tokenizer:train after 1 process", None),
    ("tokenize smollm.corpus.encode:file_digest before 2 group", None),
    ("tokenize smollm.corpus.stage:replace_directory after 2 group", None),
    ("tokenize the-end - 0 group", None),
    ("pretrain smollm.training.step:Step.update before 8 process", None),  # in step 8, between gradient and update
    ("pretrain smollm.training.trainer:Trainer.take_step before 1 group", 5),  # the first step after a resume
    ("pretrain smollm.training.checkpoint:save_file after 1 process", 5),  # the first of two files of step 10
    ("pretrain smollm.training.evaluate:bits_per_byte before 1 process", 5),  # validation at step 10
    ("pretrain smollm.training.checkpoint_store:CheckpointStore._write after 1 process", 5),  # step 10 is saved
    ("pretrain smollm.model.generate:sample before 5 group", 10),  # the sample of step 14
    ("pretrain smollm.model.export:write_model after 1 process", 10),  # all steps are done
    ("pretrain the-end - 0 group", None),
    ("finetune smollm.training.step:Step.update before 7 process", None),  # its step 7
    ("finetune the-end - 0 group", 65),
]


@pytest.mark.parametrize(
    "points",
    [
        [POINTS[4], POINTS[6], ("pretrain smollm.model.generate:sample before 5 group", 5), (POINTS[11][0], 5)],
        pytest.param(POINTS, marks=pytest.mark.slow),
    ],
    ids=["a few", "all"],
)
def test_a_kill_at_any_point_changes_nothing(points: list[tuple[str, int | None]], tmp_path: Path) -> None:
    """Point after point in one project; each start goes on from the step that it must go on from."""
    killed = clone(tmp_path / "project", pretrain=60, finetune=8)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/support/kill_points.py" "$@"\n')
    python.chmod(0o755)
    for point, resumed in points:
        with killed.start(KILL_AT=point, first_on_path=str(tmp_path / "bin")) as process:
            said, _ = process.communicate()
        assert process.returncode != 0, f"{point}\n{said}"
        assert "Traceback" not in said, f"{point}\n{said}"
        found = re.findall(r"resumed from step (\d+)", said)
        assert found == ([str(resumed)] if resumed else []), f"{point}\n{said}"
    output = killed.dvc("repro").stdout
    assert f"{points[-1][0].split()[0]}: finished before; publishing its outputs again" in output
    log = (killed.directory / "reports" / "pretrain" / "training_log.txt").read_text()
    starts = ["0", *(str(resumed) for point, resumed in points if resumed and point.startswith("pretrain"))]
    assert re.findall(r"step (\d+)  hardware", log) == starts
    assert_equals_undisturbed(killed, pretrain=60, finetune=8)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_is_no_success_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    stopped = clone(tmp_path / "project", pretrain=60, finetune=8)
    with stopped.start() as process:
        wait_for_step(stopped, process, 12)
        os.killpg(process.pid, number)
        said, _ = process.communicate()
    assert process.returncode != 0
    step = re.search(rf"stopped by {number.name} after step (\d+), all of it saved", said)
    assert step, said[-2000:]
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
    assert f"got process {orphan} still at it; let it finish, or stop it with `kill {orphan}`" in refused.stdout
    deadline = time.monotonic() + 120
    while not list(project.directory.glob(".resume/pretrain/*/complete")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    output = project.dvc("repro").stdout
    assert "finished before; publishing its outputs again" in output
    assert_equals_undisturbed(project, pretrain=60, finetune=8)
