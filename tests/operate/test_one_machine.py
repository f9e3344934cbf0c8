"""Several processes on one machine: the same numbers as one, whoever is killed, and one line where it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.clone import Clone
from support.mlflow_runs import runs, steps
from support.process_groups import SHARDED, agent, clone, losses, repro_killing, undisturbed, wait_for_end, workers
from support.training_runs import last_step, wait_for_step


def test_pretrain_sharded_over_two_processes_gives_the_losses_of_one(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 1, **{"pretrain.steps": 10, "pretrain.sample_every_steps": 10})
    project.repro("pretrain")
    of_one = losses(project)
    assert len(of_one) == 10
    project.set({"runtime.processes": 2, **SHARDED})
    output = project.dvc("repro", "-f", "-s", "pretrain").stdout
    assert "; 2 processes" in output
    assert losses(project) == pytest.approx(of_one, rel=1e-4)


@pytest.mark.slow
def test_both_stages_in_two_processes_are_those_of_one_and_one_run_in_mlflow() -> None:
    one, two = undisturbed(1), undisturbed(2)
    for stage in ("pretrain", "finetune"):
        assert losses(two, stage) == pytest.approx(losses(one, stage), rel=1e-4)
        bits = [[float(row[2]) for row in project.rows(f"reports/{stage}/validation.tsv")] for project in (one, two)]
        assert bits[1] == pytest.approx(bits[0], rel=1e-4)
        assert not set(losses(two, stage)) <= set(losses(one, stage)), "other sums round differently"
    statuses = {stage: [run.info.status for run in of_stage] for stage, of_stage in runs(two).items()}
    assert statuses == {"pretrain": ["FINISHED"], "finetune": ["FINISHED"]}
    run = runs(two)["pretrain"][0]
    assert steps(two, run.info.run_id, "train/loss") == list(range(1, 41))
    assert steps(two, run.info.run_id, "ranks/slowest_tokens_per_second") == [0, 10, 20, 30, 40]
    assert "processes 2" in (two.directory / "reports/pretrain/training_log.txt").read_text()
    names = [
        {path.name for path in (project.directory / "checkpoints/pretrain/last").iterdir()} for project in (one, two)
    ]
    assert names[0] == names[1], "one format of checkpoints"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "after"), [(3, 1), (4, 2)])
def test_more_processes_train_as_one_does_and_fewer_go_on(processes: int, after: int, tmp_path: Path) -> None:
    """Three divide neither the windows of validation nor the matrices of a shape evenly, nor the rows of weights."""
    project = clone(tmp_path / "project", processes, **(SHARDED if processes == 3 else {}))
    with project.start("pretrain", stdout=subprocess.DEVNULL) as process:
        wait_for_step(project, process, 12)
        os.kill(agent(project), signal.SIGKILL)
        process.wait()
    wait_for_end(project, seconds=20)
    project.set({"runtime.processes": after})
    output = project.dvc("repro", "pretrain").stdout
    assert int(re.findall(r"resumed from step (\d+)", output)[0]) >= 5
    assert losses(project) == pytest.approx(losses(undisturbed(1)), rel=1e-4)
    shapes = [
        {name: value.shape for name, value in load_file(clone.directory / "checkpoints/pretrain/last" / file).items()}
        for clone in (project, undisturbed(1))
        for file in ("model.safetensors", "optimizer.safetensors", "average.safetensors")
    ]
    assert shapes[:3] == shapes[3:]


@pytest.mark.slow
def test_killed_processes_are_restarted_from_the_last_checkpoint(tmp_path: Path) -> None:
    """One rank after the other."""
    project = clone(tmp_path / "project", 2)
    repro_killing(project, {0: 12, 1: 20})
    assert losses(project) == losses(undisturbed(2)), "bit for bit"
    (run,) = runs(project)["pretrain"]
    assert run.info.status == "FINISHED"
    assert steps(project, run.info.run_id, "train/loss") == list(range(1, 41))


@pytest.mark.slow
def test_whatever_ends_a_group_the_next_start_goes_on(tmp_path: Path) -> None:
    """The agent is killed, stopped by a signal, DVC is killed, and a rank that nothing restarts; in one project."""
    project = clone(tmp_path / "project", 2)
    after_the_agent_is_killed(project)
    after_a_signal_to_the_agent(project)
    after_dvc_is_killed(project)
    after_a_rank_is_killed_once_too_often(project)
    project.repro()
    assert losses(project) == losses(undisturbed(2)), "bit for bit"
    (run,) = runs(project)["pretrain"]
    assert steps(project, run.info.run_id, "train/loss") == list(range(1, 41))


def after_the_agent_is_killed(project: Clone) -> None:
    """Its processes end."""
    with project.start(stdout=subprocess.DEVNULL) as process:
        wait_for_step(project, process, 6)
        os.kill(agent(project), signal.SIGKILL)
        process.wait()
    wait_for_end(project, seconds=20)


def after_a_signal_to_the_agent(project: Clone) -> None:
    """All is saved, and all end."""
    with project.start() as process:
        wait_for_step(project, process, last_step(project.directory) + 4)
        os.kill(agent(project), signal.SIGTERM)
        output, _ = process.communicate()
    assert process.returncode != 0
    stopped = re.findall(r"^ERROR: stopped by SIGTERM after step (\d+); its state is saved", output, re.M)
    assert stopped == [str(last_step(project.directory))], output
    assert "Traceback" not in output


def after_dvc_is_killed(project: Clone) -> None:
    """A second start is refused while the group is at work."""
    stopped_at = last_step(project.directory)
    with project.start(stdout=subprocess.DEVNULL) as process:
        wait_for_step(project, process, stopped_at + 3)
        leader = agent(project)
        os.kill(leader, signal.SIGSTOP)
        for pid in (pids := workers(project)):
            os.kill(pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    refused = project.dvc("repro", check=False)
    for pid in (*pids, leader):
        os.kill(pid, signal.SIGCONT)
    assert refused.returncode != 0
    assert f"already running in this workspace as process {leader};" in refused.stdout
    os.kill(leader, signal.SIGTERM)
    while Path(f"/proc/{leader}").exists():
        time.sleep(0.1)


def after_a_rank_is_killed_once_too_often(project: Clone) -> None:
    """One line names it."""
    project.set({"runtime.max_restarts": 0})
    stopped_at = last_step(project.directory)
    with project.start() as process:
        wait_for_step(project, process, stopped_at + 3)
        os.kill(workers(project)[1], signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode != 0
    assert f"resumed from step {stopped_at}\n" in output
    assert re.findall(r"^ERROR: pretrain.*", output, re.M) == [
        "ERROR: pretrain: rank 1 was killed by SIGKILL; no restarts left (runtime.max_restarts); "
        "`dvc repro` continues from the last checkpoint"
    ]
    assert "Traceback" not in output


@pytest.mark.slow
def test_an_error_of_the_training_is_one_line_and_restarts_nothing(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 2, **{"pretrain.optimizer.lr": 1e30, "pretrain.schedule.warmup_steps": 1})
    done = project.dvc("repro", check=False)
    assert done.returncode != 0
    errors = re.findall(r"^ERROR: pretrain.*", done.stdout, re.M)
    assert len(errors) == 1, done.stdout
    assert "finite" in errors[0]
    assert "restarted" not in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_a_machine_whose_name_does_not_resolve_trains_in_several_processes(tmp_path: Path) -> None:
    """As in many containers."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--uts", "true"], check=False, capture_output=True).returncode:
        pytest.skip("changing the machine's name needs root")
    project = clone(tmp_path / "project", 2, **{"pretrain.steps": 10})
    rename = 'hostname no-such-machine && exec "$@"'
    repro = [sys.executable, "-m", "dvc", "repro", "pretrain"]
    output = project.run("timeout", "120", "unshare", "--uts", "sh", "-c", rename, "sh", *repro).stdout
    assert "; 2 processes" in output
    assert len(losses(project)) == 10


@pytest.mark.slow
def test_torchrun_itself_can_start_the_processes(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 1)
    project.repro("tokenize")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    output = project.run(*torchrun, "-m", "stages.pretrain", PYTHONPATH="src").stdout
    assert "2 processes" in output
    assert losses(project) == pytest.approx(losses(undisturbed(1)), rel=1e-4)
