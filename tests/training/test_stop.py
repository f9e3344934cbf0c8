"""What asks a stage to stop."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from support.structure import ROOT

from smollm.errors import STOP_TAG, Interrupted
from smollm.training.stop import StopSignal


def test_a_user_of_mlflow_stops_it_as_a_signal_does() -> None:
    request = threading.Event()
    with StopSignal(request=request) as stop:
        assert stop.received is None
        request.set()
        assert stop.received == STOP_TAG


def test_a_signal_counts_beside_a_request() -> None:
    request = threading.Event()
    with StopSignal(request=request) as stop:
        request.set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM


@pytest.mark.parametrize(
    ("number", "step", "message", "exit_code"),
    [
        (signal.SIGINT, 7, "stopped by SIGINT after step 7; its state is saved, and `dvc repro` continues", 130),
        (
            STOP_TAG,
            7,
            "stopped by its tag `stop` in MLflow after step 7; its state is saved, and `dvc repro` continues",
            143,
        ),
        (STOP_TAG, None, "stopped by its tag `stop` in MLflow; `dvc repro` continues", 143),
    ],
)
def test_the_line_names_what_stopped_it(number: int, step: int | None, message: str, exit_code: int) -> None:
    error = Interrupted(number, step)
    assert str(error).startswith(message)
    assert error.exit_code == exit_code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_loop_ends_a_stage_with_the_same_line_and_code(number: signal.Signals) -> None:
    program = f"import stages, os, time; os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    variables = {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True)
    expected = Interrupted(number)
    assert done.stderr == f"\nERROR: {expected}\n"
    assert done.returncode == expected.exit_code
