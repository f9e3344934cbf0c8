"""kill -9 at random moments, again and again: the result is that of a run left alone, bit for bit."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from test_pipeline import runs, steps
from workspace import Clone

KILLS = 8
STEPS = 90
EXACT = (
    "checkpoints/pretrain/model.safetensors",
    "checkpoints/pretrain/optimizer.safetensors",
    "checkpoints/finetune/model.safetensors",
    "checkpoints/finetune/optimizer.safetensors",
    "reports/pretrain/losses.tsv",
    "reports/pretrain/validation.tsv",
    "reports/pretrain/samples.tsv",
    "reports/pretrain/metrics.json",
    "reports/finetune/losses.tsv",
    "reports/finetune/metrics.json",
)


def clone(directory: Path) -> Clone:
    made = Clone.of_working_tree(directory)
    made.set({"pretrain.steps": STEPS, "pretrain.log_every_steps": 1, "pretrain.sample_every_steps": 7})
    made.commit("params")
    return made


def journal(directory: Path) -> bytes:
    """The journal of `pretrain`, empty before there is one."""
    return b"".join(path.read_bytes() for path in directory.glob(".resume/pretrain/*/journal.jsonl"))


def last_step(directory: Path) -> int:
    """The last step in the journal of `pretrain`, 0 before it has one."""
    found = re.findall(rb'"kind": "step", "step": (\d+)', journal(directory))
    return int(found[-1]) if found else 0


def resumes(directory: Path) -> list[int]:
    """The steps that `pretrain` was resumed from so far."""
    return [int(step) for step in re.findall(rb"resumed from step (\d+)", journal(directory))]


@pytest.mark.slow
def test_random_kills_change_nothing(tmp_path: Path) -> None:
    alone, killed = clone(tmp_path / "alone" / "project"), clone(tmp_path / "killed" / "project")
    alone.repro()
    chance = random.Random(1337)
    # each after a checkpoint at a multiple of 5, at any moment within or between later steps; where the
    # journal is there already, right after the resume
    targets = sorted(chance.sample(range(8, STEPS - 2), KILLS))
    for number, target in enumerate(targets):
        with killed.start() as process:
            while last_step(killed.directory) < target or len(resumes(killed.directory)) < number:
                assert process.poll() is None, f"ended before step {target}"
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
            os.killpg(process.pid, signal.SIGKILL)
    killed.repro()
    resumed = resumes(killed.directory)
    assert len(resumed) == KILLS
    assert min(resumed) > 0
    assert resumed == sorted(resumed)
    for path in EXACT:
        assert (killed.directory / path).read_bytes() == (alone.directory / path).read_bytes(), path
    (run,) = runs(killed)["pretrain"]
    assert run.info.status == "FINISHED"
    assert steps(killed, run.info.run_id, "train/loss") == list(range(1, STEPS + 1))


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
