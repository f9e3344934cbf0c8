"""What asks a stage to stop."""

import os
import signal
import threading

import pytest

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
