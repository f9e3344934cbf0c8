"""Projects whose training stages run in several processes, and the processes themselves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.clone import Clone, environment, shared
from support.servers import free_port
from support.training_runs import wait_for_step

STEPS = 40

EVERY_STEP = {
    "pretrain.dropout": 0.2,
    "pretrain.label_smoothing": 0.1,
    "pretrain.ema_decay": 0.9,
    "pretrain.log_every_steps": 1,
    "pretrain.steps": STEPS,
    "pretrain.sequences_per_step": 12,  # for 1, 2, 3 and 4 processes
    "finetune.steps": 10,
    "finetune.sequences_per_step": 12,
    "finetune.replay_fraction": 0.25,
}

SHARDED = {"runtime.shard_weights": True, "runtime.activation_checkpointing": True}


def clone(directory: Path, processes: int, **more: object) -> Clone:
    """A project whose training stages run in so many processes, with its text tokenized."""
    project = Clone.of_working_tree(directory, with_tokens=True)
    project.set({**EVERY_STEP, "runtime.processes": processes, **more})
    project.commit("params")
    return project


def undisturbed(processes: int) -> Clone:
    """A project that has run without a fault."""
    return Clone(shared(f"{processes}-processes", lambda directory: clone(directory, processes).repro()))


def losses(project: Clone, stage: str = "pretrain") -> list[float]:
    return [float(row[1]) for row in project.rows(f"reports/{stage}/losses.tsv")]


def workers(project: Clone) -> list[int]:
    """The processes that train, by rank: not DVC, not the agent."""
    pids: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve() != project.directory.resolve():
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((variable for variable in variables if variable.startswith(b"RANK=")), None)
        if rank is not None:
            pids[int(rank[5:])] = int(entry.name)
    return [pids[rank] for rank in sorted(pids)]


def wait_for_workers(project: Clone, count: int) -> list[int]:
    """The processes that train, as soon as there are so many: they then import for seconds before their first step."""
    deadline = time.monotonic() + 120
    while len(pids := workers(project)) < count:
        assert time.monotonic() < deadline, "too few processes"
        time.sleep(0.02)
    return pids


def agent(project: Clone) -> int:
    """The process that started them."""
    return int(Path(f"/proc/{workers(project)[0]}/stat").read_text().rpartition(")")[2].split()[1])


def repro_killing(project: Clone, steps: dict[int, int]) -> None:
    """Run `dvc repro` while each of these ranks is killed at its step of pretrain, in this order."""
    with project.start() as process:
        for rank, step in steps.items():
            wait_for_step(project, process, step)
            os.kill(workers(project)[rank], signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    for restart in range(1, len(steps) + 1):
        assert f"all were restarted from the last checkpoint, restart {restart} of 3" in output
    assert "Traceback" not in output


def wait_for_end(project: Clone, seconds: float) -> None:
    """Return when none of the project's processes trains any more."""
    deadline = time.monotonic() + seconds
    while workers(project):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.1)


def rendezvous(seconds: int = 60) -> dict[str, str]:
    """torchrun's settings for two machines that meet at a free port of this one."""
    return {
        "PET_NNODES": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"localhost:{free_port()}",
        "PET_RDZV_ID": "test",
        "PET_RDZV_CONF": f"join_timeout={seconds},read_timeout={seconds}",
    }


def start_without_dvc(project: Clone, **variables: str) -> "subprocess.Popen[str]":
    """Start pretrain as one does on the machines where DVC does not run."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain"],
        cwd=project.directory,
        env=environment() | {"PYTHONPATH": "src"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def two_machines(directory: Path) -> tuple[Clone, Clone]:
    """The same project twice, with its tokens: one for the machine with DVC, one for the other."""
    here = clone(directory / "here", 1)
    here.repro("tokenize")
    return here, here.copy(directory / "there")
