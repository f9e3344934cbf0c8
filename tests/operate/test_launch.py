"""Several processes that train together: the same numbers as one, whoever is killed, and one line where it ends."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.clone import Clone, environment, scratch
from support.mlflow_runs import runs, steps
from support.small_disk import fill, small_disk
from support.structure import ROOT
from support.training_runs import last_step, wait_for_step
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from smollm.config.fields import Auto
from smollm.config.file import load
from smollm.device import hardware
from smollm.errors import TrainingError
from smollm.operate import launch

EVERY_STEP = {
    "pretrain.log_every_steps": 1,
    "pretrain.steps": 40,
    "pretrain.sequences_per_step": 12,  # for 1, 2, 3 and 4 processes
    "finetune.steps": 10,
    "finetune.sequences_per_step": 12,
}
DIVIDED = {"runtime.shard_weights": True, "runtime.activation_checkpointing": True}


def clone(directory: Path, processes: int, **more: object) -> Clone:
    """A project whose training stages run in so many processes."""
    made = Clone.of_working_tree(directory, with_tokens=True)
    made.set({**EVERY_STEP, "runtime.processes": processes, **more})
    made.commit("params")
    return made


@functools.cache
def left_alone(processes: int) -> Clone:
    """A project that has run undisturbed."""
    made = clone(scratch() / "project", processes)
    made.repro()
    return made


def losses(project: Clone, stage: str = "pretrain") -> list[float]:
    return [float(row[1]) for row in project.rows(f"reports/{stage}/losses.tsv")]


def workers(project: Clone) -> list[int]:
    """The processes that train, by rank: not DVC, not the agent."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve() != project.directory.resolve():
                continue
            values = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((one for one in values if one.startswith(b"RANK=")), None)
        if rank is not None:
            found[int(rank[5:])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def agent(project: Clone) -> int:
    """The process that started them."""
    return int(Path(f"/proc/{workers(project)[0]}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(("gpus", "sequences", "expected"), [(0, 32, 1), (1, 32, 1), (4, 32, 4), (3, 32, 2), (8, 6, 6)])
def test_auto_takes_every_gpu_that_shares_a_step_evenly(
    gpus: int, sequences: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    runtime = replace(load(Path(__file__).parents[2] / "params.yaml").runtime, processes=Auto.AUTO)
    assert hardware.count_processes(runtime, sequences) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    runtime = replace(load(Path(__file__).parents[2] / "params.yaml").runtime, processes=4)
    with pytest.raises(TrainingError, match="must be at most the 2 GPUs of this machine, got 4; use auto"):
        hardware.count_processes(runtime, 32)


def test_pretrain_in_two_processes_gives_the_losses_of_one(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 1, **{"pretrain.steps": 10, "pretrain.sample_every_steps": 10})
    project.repro("pretrain")
    alone = losses(project)
    assert len(alone) == 10
    for more in ({}, DIVIDED):
        project.set({"runtime.processes": 2, **more})
        said = project.dvc("repro", "-f", "-s", "pretrain").stdout
        assert "; 2 processes" in said
        assert losses(project) == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_both_stages_in_two_processes_are_those_of_one_and_one_run_in_mlflow() -> None:
    one, two = left_alone(1), left_alone(2)
    for stage in ("pretrain", "finetune"):
        assert losses(two, stage) == pytest.approx(losses(one, stage), rel=1e-4)
        bits = [[float(row[2]) for row in project.rows(f"reports/{stage}/validation.tsv")] for project in (one, two)]
        assert bits[1] == pytest.approx(bits[0], rel=1e-4)
        assert not set(losses(two, stage)) <= set(losses(one, stage)), "numbers of other sums"
    finished = {stage: [run.info.status for run in of_stage] for stage, of_stage in runs(two).items()}
    assert finished == {"pretrain": ["FINISHED"], "finetune": ["FINISHED"]}
    run = runs(two)["pretrain"][0]
    assert steps(two, run.info.run_id, "train/loss") == list(range(1, 41))
    assert steps(two, run.info.run_id, "ranks/slowest_tokens_per_second") == [0, 10, 20, 30, 40]
    assert "processes 2" in (two.directory / "reports/pretrain/training_log.txt").read_text()
    names = [{path.name for path in (project.directory / "checkpoints/pretrain").iterdir()} for project in (one, two)]
    assert names[0] == names[1], "one format of checkpoints"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "after"), [(3, 1), (4, 2)])
def test_more_processes_train_as_one_does_and_fewer_go_on(processes: int, after: int, tmp_path: Path) -> None:
    """Three share out neither the windows of validation nor the matrices of a shape evenly, nor the rows of weights."""
    project = clone(tmp_path / "project", processes, **(DIVIDED if processes == 3 else {}))
    with project.start(stdout=subprocess.DEVNULL) as process:
        wait_for_step(project, process, 12)
        os.kill(agent(project), signal.SIGKILL)
        process.wait()
    project.set({"runtime.processes": after})
    said = project.dvc("repro", "pretrain").stdout
    assert int(re.findall(r"resumed from step (\d+)", said)[0]) >= 5
    assert losses(project) == pytest.approx(losses(left_alone(1)), rel=1e-4)
    shapes = [
        {name: value.shape for name, value in load_file(clone.directory / "checkpoints/pretrain" / file).items()}
        for clone in (project, left_alone(1))
        for file in ("model.safetensors", "optimizer.safetensors")
    ]
    assert shapes[:2] == shapes[2:]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_starts_all_anew_from_the_last_checkpoint(rank: int, tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 2)
    with project.start() as process:
        wait_for_step(project, process, 12)
        os.kill(workers(project)[rank], signal.SIGKILL)
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "all have started anew, restart 1 of 3" in said
    assert "Traceback" not in said
    assert losses(project) == losses(left_alone(2)), "bit for bit"
    (run,) = runs(project)["pretrain"]
    assert run.info.status == "FINISHED"
    assert steps(project, run.info.run_id, "train/loss") == list(range(1, 41))


@pytest.mark.slow
def test_when_the_agent_is_killed_its_processes_end_and_one_process_goes_on(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 2)
    with project.start(stdout=subprocess.DEVNULL) as process:
        wait_for_step(project, process, 12)
        os.kill(agent(project), signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while workers(project):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.1)
    project.set({"runtime.processes": 1})
    output = project.dvc("repro").stdout
    assert "resumed from step" in output
    assert int(re.findall(r"resumed from step (\d+)", output)[0]) >= 5
    assert losses(project) == pytest.approx(losses(left_alone(2)), rel=1e-4)
    (run,) = runs(project)["pretrain"]
    assert steps(project, run.info.run_id, "train/loss") == list(range(1, 41))


@pytest.mark.slow
def test_when_dvc_is_killed_the_group_ends_its_work_or_a_second_start_is_refused(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 2, **{"pretrain.steps": 20_000})
    with project.start(stdout=subprocess.DEVNULL) as process:
        wait_for_step(project, process, 12)
        leader = agent(project)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    refused = project.dvc("repro", check=False)
    assert refused.returncode != 0
    assert f"got process {leader} still at it" in refused.stdout
    os.kill(leader, signal.SIGTERM)
    while Path(f"/proc/{leader}").exists():
        time.sleep(0.1)


@pytest.mark.slow
def test_after_all_restarts_one_line_says_who_was_killed(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 3, **{"runtime.max_restarts": 0})
    with project.start() as process:
        wait_for_step(project, process, 12)
        os.kill(workers(project)[2], signal.SIGKILL)
        said, _ = process.communicate()
    assert process.returncode != 0
    line = "pretrain: all processes must live, got rank 2, which was killed by SIGKILL after all restarts"
    assert [one for one in said.splitlines() if one.startswith("ERROR: pretrain")] == [
        f"ERROR: {line} (runtime.max_restarts); `dvc repro` goes on from the last checkpoint"
    ]
    assert "Traceback" not in said
    project.set({"runtime.processes": 2})
    project.repro("pretrain")
    assert losses(project) == pytest.approx(losses(left_alone(1)), rel=1e-4)


@pytest.mark.slow
def test_a_signal_to_the_agent_saves_and_ends_all(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 2)
    with project.start() as process:
        wait_for_step(project, process, 12)
        os.kill(agent(project), signal.SIGTERM)
        said, _ = process.communicate()
    stopped = re.findall(r"^ERROR: stopped by SIGTERM after step (\d+), all of it saved", said, re.M)
    assert len(stopped) == 1, said
    assert "Traceback" not in said
    assert last_step(project.directory) == int(stopped[0])
    assert f"resumed from step {stopped[0]}" in project.dvc("repro").stdout
    assert losses(project) == losses(left_alone(2))


@pytest.mark.slow
def test_an_error_of_the_training_is_one_line_and_starts_nothing_anew(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 2, **{"pretrain.optimizer.lr": 1e30, "pretrain.schedule.warmup_steps": 1})
    done = project.dvc("repro", check=False)
    assert done.returncode != 0
    errors = [one for one in done.stdout.splitlines() if one.startswith("ERROR: pretrain")]
    assert len(errors) == 1, done.stdout
    assert "must be finite" in errors[0]
    assert "anew" not in done.stdout
    assert "Traceback" not in done.stdout


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def meeting(port: int, seconds: int = 60) -> dict[str, str]:
    """torchrun's settings of two machines that meet at `port` of this one."""
    return {
        "PET_NNODES": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"localhost:{port}",
        "PET_RDZV_ID": "test",
        "PET_RDZV_CONF": f"join_timeout={seconds},read_timeout={seconds}",
    }


def other_machine(project: Clone, **variables: str) -> "subprocess.Popen[str]":
    """The same stage in another clone, as one starts it where DVC does not run."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain"],
        cwd=project.directory,
        env=environment() | {"PYTHONPATH": "src"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def two_machines(directory: Path) -> tuple[Clone, Clone]:
    """The same project twice, with its tokens: one for DVC, one for torchrun alone."""
    here = clone(directory / "here", 1)
    here.repro("tokenize")
    subprocess.run(["cp", "-r", here.directory, directory / "there"], check=True)
    return here, Clone(directory / "there")


@pytest.mark.slow
def test_two_machines_train_as_one_and_the_one_with_dvc_keeps_the_books(tmp_path: Path) -> None:
    here, there = two_machines(tmp_path)
    variables = meeting(free_port())
    with other_machine(there, **variables) as other:
        said = here.dvc("repro", "pretrain", **variables).stdout
        others, _ = other.communicate(timeout=60)
    assert other.returncode == 0, others
    assert "2 processes" in said
    assert losses(here) == pytest.approx(losses(left_alone(1)), rel=1e-4)
    assert not (there.directory / "checkpoints").exists() or not list((there.directory / "checkpoints").iterdir())
    assert len(runs(here)["pretrain"]) == 1
    assert json.loads((here.directory / "reports/pretrain/run.json").read_text())["mlflow_run_id"]


@pytest.mark.slow
def test_a_process_killed_on_another_machine_starts_all_anew_on_both(tmp_path: Path) -> None:
    here, there = two_machines(tmp_path)
    variables = meeting(free_port())
    with other_machine(there, **variables) as other, here.start("pretrain", **variables) as process:
        wait_for_step(here, process, 12)
        os.kill(workers(there)[0], signal.SIGKILL)
        said, _ = process.communicate()
        others, _ = other.communicate(timeout=30)
    assert (process.returncode, other.returncode) == (0, 0), said + others
    assert "all have started anew, restart 1 of 3" in said
    assert "Traceback" not in said + others
    assert losses(here) == pytest.approx(losses(left_alone(1)), rel=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_machine_saves_and_ends_all(tmp_path: Path) -> None:
    here, there = two_machines(tmp_path)
    for signalled in (here, there):
        variables = meeting(free_port())
        with other_machine(there, **variables) as other, here.start("pretrain", **variables) as process:
            wait_for_step(here, process, last_step(here.directory) + 10)
            os.kill(agent(signalled), signal.SIGTERM)
            said, _ = process.communicate(timeout=30)
            others, _ = other.communicate(timeout=30)
        stopped = re.findall(r"^ERROR: stopped by SIGTERM after step (\d+), all of it saved", said, re.M)
        assert stopped == [str(last_step(here.directory))], said
        assert re.findall(r"^ERROR: .*", others, re.M) == re.findall(r"^ERROR: stopped.*", said, re.M)
        assert process.returncode != 0
        assert other.returncode == 128 + signal.SIGTERM
        assert "Traceback" not in said + others
    assert f"resumed from step {stopped[0]}" in here.dvc("repro", "pretrain").stdout
    assert losses(here) == pytest.approx(losses(left_alone(1)), rel=1e-4)


@pytest.mark.slow
def test_what_fails_on_one_machine_alone_ends_all_with_its_line(tmp_path: Path) -> None:
    here, there = two_machines(tmp_path)
    variables = meeting(free_port())
    with (
        small_disk(here.directory / ".resume", 16384),
        other_machine(there, **variables) as other,
        here.start("pretrain", **variables) as process,
    ):
        wait_for_step(here, process, 12)
        fill(here.directory / ".resume" / "filler")
        said, _ = process.communicate(timeout=60)
        others, _ = other.communicate(timeout=30)
    line = re.findall(r"^ERROR: the disk must have room .*", said, re.M)
    assert len(line) == 1, said
    assert re.findall(r"^ERROR: .*", others, re.M) == line
    assert process.returncode != 0
    assert other.returncode != 0
    assert "Traceback" not in said + others


@pytest.mark.slow
def test_machines_that_are_not_of_one_mind_are_refused(tmp_path: Path) -> None:
    here, there = two_machines(tmp_path)
    there.set({"pretrain.optimizer.lr": 0.002})
    variables = meeting(free_port())
    with other_machine(there, **variables) as other:
        done = here.dvc("repro", "pretrain", check=False, **variables)
        others, _ = other.communicate(timeout=90)
    assert "must have the same params, code, data and torch, got lr=0.00" in done.stdout + others
    assert done.returncode != 0
    assert other.returncode != 0


@pytest.mark.slow
def test_a_meeting_that_nobody_else_comes_to_ends_in_one_line(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 1)
    project.repro("tokenize")
    port = free_port()
    began = time.monotonic()
    done = project.dvc("repro", "pretrain", check=False, **meeting(port, seconds=5))
    assert time.monotonic() - began < 60
    assert f"pretrain: 2 machines must meet at localhost:{port} in time, got fewer; start it on all" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_line_names_who_was_killed_or_what_the_exchange_failed_with(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    killed = {rank: ProcessFailure(rank, 1, code, "none") for rank, code in ((0, 1), (1, 1), (2, -9))}
    assert "got rank 2, which was killed by SIGKILL after" in launch._why(ChildFailedError("stage", killed), lost)
    failed = ChildFailedError("stage", {0: ProcessFailure(0, 1, 1, "none")})
    assert "got rank 0, which failed with 1 after all restarts" in launch._why(failed, lost)
    lost.write_text("NCCL error: no space in /dev/shm")
    assert "which failed with 1 (NCCL error: no space in /dev/shm) after" in launch._why(failed, lost)
    assert "got RendezvousClosedError; is the port free" in launch._why(RendezvousClosedError(), lost)


START = """
from pathlib import Path
from smollm.operate import launch
from smollm.stage import run as pipeline
from smollm.config.file import load
runtime = load(Path("presets/tiny.yaml")).runtime
pipeline.main(lambda: launch.run("pretrain", runtime, 6, print))
"""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"PET_NNODES": "1:2"}, "PET_NNODES must be the number of machines, got '1:2'; set it to one number"),
        ({"PET_RDZV_BACKEND": "c10"}, r"torchrun's settings \(PET_...\) must be ones that it takes, got .*c10"),
    ],
)
def test_settings_of_torchruns_that_it_does_not_take_are_one_line(settings: dict[str, str], line: str) -> None:
    variables = meeting(free_port()) | settings | {"PYTHONPATH": "src"}
    done = subprocess.run(
        [sys.executable, "-c", START],
        env=environment() | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(rf"^ERROR: pretrain: {line}", done.stderr, re.M), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_itself_can_start_the_processes(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 1)
    project.repro("tokenize")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    said = project.run(*torchrun, "-m", "stages.pretrain", PYTHONPATH="src").stdout
    assert "2 processes" in said
    assert losses(project) == pytest.approx(losses(left_alone(1)), rel=1e-4)


@pytest.mark.slow
def test_a_port_that_something_else_uses_ends_in_one_line(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", 1)
    project.repro("tokenize")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = project.dvc("repro", "pretrain", check=False, **meeting(port, seconds=5))
    assert done.returncode != 0
    assert f"must be able to meet at localhost:{port}" in done.stdout
    assert "Traceback" not in done.stdout
