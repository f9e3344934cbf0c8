"""The MLflow run of a study, whose children are the runs of its trials."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from smollm.config.tracking import TrackingConfig
from smollm.state.journal import Journal, Kind
from smollm.tracking import provenance
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.run_record import RunDescription, RunEnd
from smollm.tracking.tracker import Tracker

PARENT = "SMOLLM_SWEEP_RUN"
"""Environment variable that tells a trial's stages their study's run, by its delivery id."""

PRUNED = "pruned"
"""A file that a sweep adds to the live state of a trial before it stops it for good, and that says why."""

SWEEP = "sweep"
"""The tag `stage` of a study's run, which trains nothing itself."""

_SELDOM_SECONDS = 3600.0
"""Between measurements of the machine, which the trials' own runs measure."""


class SweepRun:
    """Sends a study's run to MLflow as a stage does: from a thread, and through the outbox where MLflow is away."""

    def __init__(
        self,
        name: str,
        directory: Path,
        root: Path,
        settings: TrackingConfig,
        say: Callable[[str], None],
        on_stop: Callable[[], None],
    ) -> None:
        """
        Args:
            name: of the study.
            directory: the study's folder, which keeps what MLflow has acknowledged.
            root: of the repository.
            settings: of MLflow.
            say: prints a line for the user.
            on_stop: called from another thread when a user stops the study in MLflow.
        """
        self._name, self._settings = name, settings
        seldom = replace(settings, system_metrics_every_seconds=_SELDOM_SECONDS)
        self._journal = Journal(directory / "journal.jsonl")
        self._tracker = Tracker(directory, MlflowStore.of(root), seldom, say, on_stop)
        self._root = root

    def begin(self, params: Mapping[str, object]) -> str:
        """Begin the run or continue it, and wait until MLflow has it or does not answer.

        Args:
            params: of the study, by name.

        Returns:
            The value of `PARENT` for the stages of its trials.
        """
        started = time.time()
        try:
            git = provenance.git_state(self._root)
        except provenance.GitRefused:
            git = {}
        self._tracker.start(
            RunDescription(
                delivery_id=f"sweep-{self._name}-{int(started * 1000)}",
                experiment=self._settings.experiment,
                run_name=f"sweep {self._name}",
                started=started,
                user=provenance.user(),
                params={name: str(value) for name, value in params.items()},
                tags={"stage": SWEEP, "mlflow.source.name": f"make sweep STUDY={self._name}", **git},
            )
        )
        deadline = time.monotonic() + self._settings.finish_seconds
        while self._tracker.delivery.run_id is None and not self._tracker.has_warned and time.monotonic() < deadline:
            time.sleep(0.1)
        return self._tracker.delivery.delivery_id

    def record(self, trial: int, values: Mapping[str, float]) -> None:
        """Record metrics of a trial that has ended; once, however often it is called."""
        self._journal.append(Kind.RESULT, trial, **values)

    def end(self, status: str, tags: dict[str, str], artifacts: dict[str, Path]) -> None:
        """End the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            tags: what is known of the study's best trial.
            artifacts: files to upload, by their path in MLflow.
        """
        self._tracker.end(RunEnd(status, time.time(), tags), artifacts)
        self._journal.close()
