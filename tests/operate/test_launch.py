"""The line that ends processes that cannot start, cannot meet, or have no restarts left; nothing trains."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.clone import environment
from support.process_groups import rendezvous
from support.structure import ROOT
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from smollm.config.file import load
from smollm.errors import TrainingError
from smollm.operate import launch

START = """
from pathlib import Path
from smollm.operate import launch
from smollm.stage import run as pipeline
from smollm.config.file import load
runtime = load(Path("presets/tiny.yaml")).runtime
pipeline.main(lambda: launch.run("pretrain", runtime, 6, print))
"""


def error_line(variables: dict[str, str]) -> str:
    """The one line with which a machine ends that has these settings of torchrun's."""
    done = subprocess.run(
        [sys.executable, "-c", START],
        env=environment() | variables | {"PYTHONPATH": "src"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = re.findall(r"^ERROR: pretrain: (.*)", done.stderr, re.M)
    return str(line)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"PET_NNODES": "1:2"}, "PET_NNODES must be the number of machines, got '1:2'; set it to one number"),
        ({"PET_RDZV_BACKEND": "c10"}, r"torchrun refuses its settings \(PET_\.\.\.\): .*c10.*; correct them"),
    ],
)
def test_settings_that_torchrun_refuses_are_one_line(settings: dict[str, str], line: str) -> None:
    assert re.fullmatch(line, error_line(rendezvous() | settings))


def test_machines_that_wait_for_others_in_vain_end_in_one_line() -> None:
    settings = rendezvous(seconds=5)
    began = time.monotonic()
    line = error_line(settings)
    assert time.monotonic() - began < 60
    where = settings["PET_RDZV_ENDPOINT"]
    assert line == f"fewer than 2 machines (PET_NNODES) joined at {where} in time; start the stage on all of them"


@pytest.mark.slow  # it waits for join_timeout and 20 seconds more
def test_a_port_that_something_else_uses_ends_in_one_line() -> None:
    settings = rendezvous(seconds=5)
    where = settings["PET_RDZV_ENDPOINT"]
    with socket.create_server(("127.0.0.1", int(where.rpartition(":")[2]))):
        line = error_line(settings)
    assert line.startswith(f"the machines could not meet at {where} (PET_RDZV_ENDPOINT): ")
    assert line.endswith("; is the port free and open?")


def failure(rank: int, exit_code: int, directory: Path, seconds: float = 0.0, message: str = "") -> ProcessFailure:
    """How torchrun sees a process that ended, and left a `message` in its error file."""
    file = directory / f"{rank}.json"
    if message:
        details = {"py_callstack": f"Traceback of rank {rank}", "timestamp": seconds}
        file.write_text(json.dumps({"message": {"message": message, "extraInfo": details}}))
    return ProcessFailure(rank, 1, exit_code, str(file))


NO_RESTARTS = "; no restarts left (runtime.max_restarts); `dvc repro` continues from the last checkpoint"


def test_the_line_names_the_rank_that_was_killed_not_those_that_lost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {0: failure(0, 1, tmp_path, 5.0, "RuntimeError: Connection closed by peer"), 2: failure(2, -9, tmp_path)}
    line = line_after(ChildFailedError("stage", failures), monkeypatch)
    assert line == f"pretrain: rank 2 was killed by SIGKILL{NO_RESTARTS}"
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_the_program_is_that_of_the_rank_that_had_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {
        0: failure(0, 1, tmp_path, 5.2, "RuntimeError: Connection closed by peer"),
        1: failure(1, 1, tmp_path, 5.1, "KeyError: 'text'"),
    }
    line = line_after(ChildFailedError("stage", failures), monkeypatch)
    assert line == f"pretrain: rank 1 failed: KeyError: 'text'{NO_RESTARTS}"
    assert capsys.readouterr().err == "Traceback of rank 1"


def test_a_process_that_leaves_no_word_is_named_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = line_after(ChildFailedError("stage", {1: failure(1, 3, tmp_path)}), monkeypatch)
    assert line == f"pretrain: rank 1 ended with exit code 3{NO_RESTARTS}"


def test_a_rendezvous_that_is_over_is_a_place_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "(PET_RDZV_ENDPOINT): RendezvousClosedError; is the port" in line_after(RendezvousClosedError(), monkeypatch)


def line_after(error: Exception, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error of a stage in two processes whose torchrun ends with `error`."""

    def torchrun(_: object) -> None:
        raise error

    monkeypatch.setattr("torch.distributed.run.run", torchrun)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    runtime = replace(load(ROOT / "presets" / "tiny.yaml").runtime, processes=2)
    with pytest.raises(TrainingError) as raised:
        launch.run("pretrain", runtime, 6, print)
    return str(raised.value)
