"""Reports one execution of a stage to the user and to MLflow."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm.config.tracking import TrackingConfig
from smollm.errors import Interrupted
from smollm.state.files import read_json, write_json
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace, is_code
from smollm.tracking import announce, provenance
from smollm.tracking.console import say
from smollm.tracking.kept_checkpoints import kept_checkpoints
from smollm.tracking.kept_states import kept_state_line
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.run_name import run_name
from smollm.tracking.run_record import Dataset, KeptCheckpoint, ModelVersion, RunDescription, RunEnd
from smollm.tracking.sweep_run import PARENT, PRUNED
from smollm.tracking.tracker import Tracker

_USERS = ("data/raw", "data/tasks")
"""Inputs that no stage writes."""


@dataclass(frozen=True)
class RunInputs:
    """What a run of a stage starts from."""

    settings: dict[str, object]
    """Values or (nested) dataclasses, by their section of params.yaml."""
    datasets: list[Dataset] = field(default_factory=list)
    parent: Path | None = None
    """run.json of the stage whose checkpoint this one continues."""


class StageObserver:
    """Reports one execution of a stage: `begin`, then the work in `reporting_failure`, then `flush` and `finish`."""

    def __init__(
        self,
        stage: str,
        workspace: Workspace,
        state: LiveState,
        tracking: TrackingConfig,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            stage: name in dvc.yaml.
            workspace: where it runs.
            state: its live state.
            tracking: settings of MLflow.
            on_stop: called from another thread when a user stops the run in MLflow.
        """
        self.stage, self.workspace, self.state, self.tracking = stage, workspace, state, tracking
        self.store = MlflowStore.of(workspace.root)
        self.tracker = Tracker(state.directory, self.store, tracking, lambda line: say(f"{stage}: {line}"), on_stop)

    def begin(self, inputs: RunInputs) -> None:
        """Name the states kept from before edits, and start to send the run to MLflow without waiting for it."""
        for abandoned in self.state.abandoned():
            say(kept_state_line(abandoned, self.state.inputs, self.workspace.params(self.stage)))
        self.tracker.start(self._describe(inputs))

    @contextmanager
    def reporting_failure(self, artifacts: dict[str, Path]) -> Iterator[None]:
        """End the MLflow run of a stage that does not reach its end.

        Args:
            artifacts: files to upload, by their path in MLflow; read when the stage fails.
        """
        try:
            yield
        except BaseException as error:
            cause: BaseException = error
            code = error.code if isinstance(error, SystemExit) else None
            if isinstance(code, int) and code > 128:  # by a signal, outside the training loop
                cause = Interrupted(code - 128)
            status = "KILLED" if isinstance(cause, Interrupted) else "FAILED"
            tags = {"error": f"{type(cause).__name__}: {self._reason(cause)}"}
            self.tracker.end(RunEnd(status, time.time(), tags), artifacts)
            raise

    def _reason(self, error: BaseException) -> str:
        """The message of an error; without how a stage continues, if this is a trial of a study."""
        text = str(error).strip()
        if not isinstance(error, Interrupted) or PARENT not in os.environ:
            return text
        try:
            return (self.state.directory / PRUNED).read_text(encoding="utf-8")
        except OSError:  # not pruned
            return re.split("; its state is saved|; `dvc repro`", text)[0]

    def flush(self) -> None:
        """Send what MLflow lacks, if it answers in time, so that `identity` has the run's id."""
        self.tracker.flush()

    @property
    def identity(self) -> dict[str, Any]:
        """How to find the run in MLflow, for run.json."""
        delivery = self.tracker.delivery
        return {
            "mlflow_run_id": delivery.run_id,
            "mlflow_delivery_id": delivery.delivery_id,
            "mlflow_experiment": delivery.state.get("experiment"),
            "mlflow_tracking_uri": self.store.shown,
        }

    def finish(self, artifacts: dict[str, Path], registered_model: str | None) -> None:
        """End the run of a stage whose outputs are published.

        Args:
            artifacts: files to upload, by their path in MLflow.
            registered_model: name in MLflow's registry that gets a version for the stage's model.
        """
        try:
            files, run_end = self._run_end(registered_model)
        except OSError as error:  # is no reason to fail a stage whose outputs are published
            say(f"{self.stage}: {announce.run_incomplete(error)}")
            files, run_end = {}, RunEnd("FINISHED", time.time())
        self.tracker.end(run_end, {**artifacts, **files})

    def _run_end(self, registered_model: str | None) -> tuple[dict[str, Path], RunEnd]:
        """What is known of a finished run, and the files that describe it, by their path in MLflow."""
        # a run that was continued belongs to the experiment that finished it
        name = {"mlflow.runName": run_name(self.stage, self.workspace)}
        tags = self._output_tags() | provenance.dvc_state() | name
        environment = self.state.directory / "environment.json"
        write_json(environment, provenance.environment())
        files = {"params.yaml": self._params, "environment.json": environment}
        metrics = self._metrics()
        checkpoints: list[KeptCheckpoint] = []
        if "best_step" in metrics:
            tags["corpus"] = metrics["corpus"]
            checkpoints += kept_checkpoints(self.stage, self.state.journal.records(), metrics, tags)
        version = None
        if registered_model is not None:
            files["model/pointer.json"] = self.state.directory / "pointer.json"
            version = self._version(registered_model, tags, metrics, files["model/pointer.json"])
        return files, RunEnd("FINISHED", time.time(), tags, version, checkpoints)

    @property
    def _params(self) -> Path:
        """params.yaml as the stage began with it."""
        return self.state.directory / "params.yaml"

    def _describe(self, inputs: RunInputs) -> RunDescription:
        shutil.copyfile(self.workspace.directory / "params.yaml", self._params)
        fingerprint, started = self.state.fingerprint, time.time()
        git = self._git_tags()
        parent, sweep = read_json(inputs.parent) if inputs.parent else {}, os.environ.get(PARENT)
        return RunDescription(
            delivery_id=f"{fingerprint}-{int(started * 1000)}",  # the outbox sorts by the time in it
            experiment=self.tracking.experiment,
            run_name=run_name(self.stage, self.workspace),
            started=started,
            user=provenance.user(),
            params=provenance.flatten(inputs.settings),
            tags={
                "stage": self.stage,
                "fingerprint": fingerprint,
                "mlflow.source.name": f"dvc repro {self.stage}",
                **git,
                **provenance.dvc_state(),
                **{f"dvc.dep.{path}": self.state.inputs[path] or "" for path in self._data_inputs},
            },
            datasets=inputs.datasets,
            parent_run_id=None if sweep else parent.get("mlflow_run_id"),
            parent_delivery_id=sweep or parent.get("mlflow_delivery_id"),
        )

    def _git_tags(self) -> dict[str, str]:
        try:
            git = provenance.git_state(self.workspace.directory)
        except provenance.GitRefused as error:
            say(f"{self.stage}: {announce.git_refused(error)}")
            return {"git.commit": "unknown"}
        return git | ({"mlflow.source.git.commit": git["git.commit"]} if git else {})

    @property
    def _data_inputs(self) -> list[str]:
        return [path for path in self.state.inputs if not is_code(path)]

    def _output_tags(self) -> dict[str, str]:
        """The digest of each output, and the commands that bring them back."""
        declared = self.workspace.stage(self.stage)["outs"]
        outputs = [path for path in declared if not path.startswith("reports/")]
        log = next(path for path in declared if path.endswith("log.txt"))
        data = [path for path in self._data_inputs if path not in _USERS]
        # a log holds times, so that no other result has its digest
        restore = provenance.restore_command(self._digest(log), [*outputs, *data])
        return {"restore": restore, **{f"dvc.out.{path}": self._digest(path) for path in outputs}}

    def _digest(self, output: str) -> str:
        return self.workspace.digest(output) or ""

    def _metrics(self) -> dict[str, Any]:
        """The stage's metrics.json."""
        path = self.workspace.directory / "reports" / self.stage / "metrics.json"
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return metrics

    def _version(
        self, registered_model: str, tags: dict[str, str], metrics: dict[str, Any], file: Path
    ) -> ModelVersion:
        """A version for MLflow's registry: a pointer, written to `file`, to the model that DVC holds."""
        model, checkpoint = f"models/{self.stage}", f"checkpoints/{self.stage}"
        pointer = {
            "path": model,
            "md5": tags[f"dvc.out.{model}"],
            "remote": provenance.dvc_remote(self.workspace.directory),
            "checkpoint": checkpoint,
            "checkpoint_md5": tags[f"dvc.out.{checkpoint}"],
            "restore": tags["restore"],
        }
        write_json(file, pointer)
        rows = "".join(f"| {name} | {value} |\n" for name, value in metrics.items())
        description = f"| | |\n|---|---|\n{rows}\n```\n{tags['restore']}\n```\n"
        shown = {**pointer, **{f"metrics.{name}": str(value) for name, value in metrics.items()}}
        return ModelVersion(registered_model, description, shown, "model")
