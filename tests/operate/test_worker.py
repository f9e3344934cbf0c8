"""How ranks end: those that fail in seconds, with one line, rank 0's own where it fails too."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.clone import environment
from support.servers import free_port
from support.structure import ROOT

pytestmark = pytest.mark.slow  # processes that import torch, and wait for each other

WORKER = """
import os, time
from pathlib import Path
from smollm.config.file import load
from smollm.errors import ConfigError
from smollm.operate.worker import run_worker
from smollm.stage.run import main

def work(group):
    {work}

main(lambda: run_worker(load(Path("presets/tiny.yaml")).runtime, work))
"""

ALONE = """
    if group.is_rank_zero:
        group.all_gather(None)
    raise ConfigError("rank 1 alone")
"""

BOTH = """
    if group.is_rank_zero:
        try:
            with group.reporting_failure():
                raise ConfigError("rank 0 too")
        finally:
            time.sleep(15)  # as where MLflow takes its time
            Path(os.environ["DONE"]).touch()
    raise ConfigError("rank 1 first")
"""

GONE = """
    if not group.is_rank_zero:
        os._exit(0)
"""

BUSY = """
    import threading

    def ask():
        while True:
            group.store.check(["anything"])

    for _ in range(3):
        threading.Thread(target=ask, daemon=True).start()
"""


def errors_of_two_ranks(work: str, directory: Path, exit_code: int = 1) -> list[list[str]]:
    """The lines of error of rank 0 and of rank 1, which do this work and end with this exit code."""
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_ERROR_FILE": str(directory / f"{rank}.json")}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER.format(work=work.strip())],
                cwd=ROOT,
                env=environment() | group | own | {"PYTHONPATH": "src", "DONE": str(directory / "done")},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=75)[1] for process in processes]
    assert [process.returncode for process in processes] == [exit_code] * 2
    return [[line for line in text.splitlines() if line.startswith("ERROR:")] for text in said]


def test_a_rank_that_fails_alone_ends_the_others_with_its_line(tmp_path: Path) -> None:
    errors = errors_of_two_ranks(ALONE, tmp_path)
    assert errors == [["ERROR: rank 1 alone"]] * 2


def test_rank_zero_that_fails_too_reports_its_own_error_when_it_is_done(tmp_path: Path) -> None:
    errors = errors_of_two_ranks(BOTH, tmp_path)
    assert (tmp_path / "done").exists()
    assert errors == [["ERROR: rank 0 too"]] * 2


def test_a_rank_whose_work_is_done_succeeds_whatever_becomes_of_the_others(tmp_path: Path) -> None:
    assert errors_of_two_ranks(GONE, tmp_path, exit_code=0) == [[], []]


def test_a_rank_whose_work_is_done_succeeds_whatever_its_threads_are_doing(tmp_path: Path) -> None:
    """At an orderly exit, Python ends a thread that is inside PyTorch in a way that aborts the process."""
    assert errors_of_two_ranks(BUSY, tmp_path, exit_code=0) == [[], []]
