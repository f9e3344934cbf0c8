"""What all stages do: begin or resume, work, publish the outputs, end."""

import gc
import io
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm.config.tracking import TrackingConfig
from smollm.errors import STOP_TAG, Interrupted, user_error
from smollm.state.files import write_json
from smollm.state.journal import Kind
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace
from smollm.tracking import announce
from smollm.tracking.console import say, say_error
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.observer import RunInputs, StageObserver
from smollm.tracking.outbox import abandon

_COLLECT_AFTER = 100_000
"""New objects after which Python collects garbage. MLflow, imported during training, makes many that stay alive."""


@dataclass
class StageRun:
    """One execution of a stage."""

    name: str
    workspace: Workspace
    state: LiveState
    artifacts: dict[str, Path] = field(default_factory=dict)
    """Files for MLflow, by their path there; added while publishing."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What run.json holds besides the run's identity: mainly speed."""
    registered_model: str | None = None
    """Name in MLflow's registry that gets a version for this run's model."""
    stop_request: threading.Event = field(default_factory=threading.Event)
    """Set when a user stops the run in MLflow."""

    @property
    def reports(self) -> Path:
        return self.workspace.directory / "reports" / self.name

    def log(self, message: str, step: int = 0) -> None:
        """Print a line, and add it to the training log."""
        say(f"{self.name}: {message}")
        self.state.journal.event(step, message)

    def check_stop(self) -> None:
        """
        Raises:
            Interrupted: a user stops the run in MLflow.
        """
        if self.stop_request.is_set():
            raise Interrupted(STOP_TAG)


def run_stage(
    name: str,
    workspace: Workspace,
    tracking: TrackingConfig,
    inputs: Callable[[StageRun], RunInputs],
    work: Callable[[StageRun], None],
    publish: Callable[[StageRun], None],
) -> None:
    """Do the stage's `work`, unless it is done, and `publish` its outputs.

    Args:
        name: of the stage in dvc.yaml.
        workspace: where it runs.
        tracking: settings of MLflow.
        inputs: gives the settings and datasets of the run, for MLflow.
        work: fills the live state; where an earlier process was killed, it resumes from what is there.
        publish: writes the declared outputs from the live state; takes seconds.

    Raises:
        PipelineError: with a line for the user.
    """
    store = MlflowStore.of(workspace.root)
    with LiveState(name, workspace, say, lambda path: abandon(path, store, time.time())) as state:
        run = StageRun(name, workspace, state)
        observer = StageObserver(name, workspace, state, tracking, run.stop_request.set)
        observer.begin(inputs(run))
        with observer.reporting_failure(run.artifacts):
            if state.is_complete:
                run.log(announce.PUBLISHING_AGAIN)
            else:
                work(run)
                state.mark_complete()
            observer.flush()
            state.check_unchanged()
            publish(run)
            state.check_unchanged()
            _write_run_json(run, observer.identity)
        observer.finish(run.artifacts, run.registered_model)


def _write_run_json(run: StageRun, identity: dict[str, Any]) -> None:
    """Write what differs from execution to execution: the MLflow run and the speed.

    `wall_seconds` is from the first start to the end of the work, pauses after a kill included.
    """
    records = run.state.journal.records()
    end = next(record.time for record in records if record.kind == Kind.COMPLETE)
    path = run.reports / "run.json"
    seconds = round(end - records[0].time, 1)
    write_json(path, {**identity, "fingerprint": run.state.fingerprint, "wall_seconds": seconds, **run.facts})
    run.artifacts["run.json"] = path


def main(stage: Callable[[], None]) -> None:
    """Run a stage as a program: a user's error is one line and an exit code, never a traceback."""
    gc.freeze()  # modules are never garbage, and scanning their objects takes half a second
    gc.set_threshold(_COLLECT_AFTER, 50, 100)
    gc.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # samples may hold what the terminal's encoding lacks
    try:
        stage()
    except Exception as error:
        for_user = user_error(error)
        if for_user is None:
            raise
        say_error(str(for_user))
        sys.exit(for_user.exit_code)
    finally:
        gc.freeze()  # else the interpreter scans them once more when it exits
