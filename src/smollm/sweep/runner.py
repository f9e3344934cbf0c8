"""The loop of a study: Optuna proposes values, DVC runs them, pruned trials are stopped."""

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from smollm.config.file import config_of
from smollm.config.tracking import TrackingConfig
from smollm.errors import ConfigError, PipelineError, StateError
from smollm.state.workspace import Workspace
from smollm.sweep import table
from smollm.sweep.common import check_common, check_names
from smollm.sweep.experiment import Experiment, wait_until_ended
from smollm.sweep.search import Outcome, Search
from smollm.sweep.study_file import Study, Value, with_values
from smollm.tracking.console import say
from smollm.tracking.sweep_run import PARENT, SweepRun

_LOOK_SECONDS = 0.5
"""Between two looks at the running trials."""

_STOP_SECONDS = 120.0
"""How long a stage may take to save its state when it is stopped; then it is killed."""

_FAILURES = 3
"""This many failed trials in a row end the sweep: the cause is not in their values."""

_STARTS = 5
"""How often a trial is started that is killed, or that other DVC commands keep out."""


@dataclass
class _Trial:
    experiment: Experiment
    values: dict[str, Value]
    share: dict[str, str]
    starts: int = 0
    seen: int = 0
    """Validations that Optuna knows."""
    kill_at: float | None = None
    """When it is killed, if it was asked to stop and still runs: seconds of `time.monotonic`."""


class Runner:
    """Runs what is left of a study's trials."""

    def __init__(
        self,
        study: Study,
        search: Search,
        directory: Path,
        workspace: Workspace,
        tracking: TrackingConfig,
        shares: list[dict[str, str]],
    ) -> None:
        """
        Args:
            study: what to vary.
            search: its trials.
            directory: its folder.
            workspace: of the repository.
            tracking: settings of MLflow.
            shares: environment variables for each of the trials that run at a time.
        """
        self.study, self.search, self.directory, self.workspace = study, search, directory, workspace
        self._free = list(shares)
        self._running: dict[int, _Trial] = {}
        self._failures = 0
        self._is_stopping = False
        (directory / "mlflow").mkdir(exist_ok=True)
        self._run = SweepRun(study.name, directory / "mlflow", workspace.root, tracking, self._say, self._stop)
        self._parent = ""

    def run(self) -> None:
        """Run them.

        Raises:
            PipelineError: with a line for the user.
        """
        check_names(self.study, self.search, self.workspace)
        check_common(self.study, self.search, self.workspace)
        self._parent = self._run.begin(self.study.described())
        status = "FAILED"
        try:
            with self._signals():
                self._loop()
            status = "KILLED" if self._is_stopping else "FINISHED"
        finally:
            self._end_running()
            self._end_run(status)
        if self._is_stopping:
            raise StateError(f"{self.study.name}: stopped, its running trials saved; the same command continues them")

    def _loop(self) -> None:
        waiting = self.search.unfinished()
        while not self._is_stopping:
            if self._free and all(trial.experiment.has_begun for trial in self._running.values()):
                if waiting or self.search.remaining():
                    self._begin(waiting.pop(0) if waiting else self.search.ask())
                elif not self._running:
                    return
            for number, trial in list(self._running.items()):
                self._look(number, trial)
            time.sleep(_LOOK_SECONDS)

    def _begin(self, number: int) -> None:
        """Begin a trial, or go on with one that a killed sweep has left."""
        check_common(self.study, self.search, self.workspace)
        name, values = table.trial_name(self.study.name, number), self.search.choose(number)
        experiment = Experiment(name, self.study.stage, self.workspace, self.directory / f"{name}.log")
        trial = self._running[number] = _Trial(experiment, values, self._free.pop(0))
        try:
            config_of(with_values(self.study.base, values), "params.yaml")
        except ConfigError as error:
            self._end(number, Outcome.FAILED, reason=str(error).splitlines()[0])
            return
        shown = ", ".join(f"{setting}={table.short(value)}" for setting, value in values.items())
        if experiment.result() is None:
            verb = "goes on" if experiment.poll() else "begins"
            self._say(f"{name} {verb} with {shown}")
            self._start(trial)

    def _start(self, trial: _Trial) -> None:
        trial.starts += 1
        trial.experiment.start(trial.values, {**trial.share, PARENT: self._parent})

    def _look(self, number: int, trial: _Trial) -> None:
        """Report a trial's new validations, stop it if it is pruned, and tell Optuna how it ended if it did."""
        experiment = trial.experiment
        is_running = experiment.poll()
        self._report(number, trial)
        if is_running:
            if trial.kill_at is not None and time.monotonic() > trial.kill_at:
                experiment.kill()
            return
        result = experiment.result()
        if result is not None:
            self._end(number, Outcome.COMPLETE, result)
        elif trial.kill_at is not None:
            self._end(number, Outcome.STOPPED)
        elif (experiment.was_killed or experiment.was_shut_out) and trial.starts < _STARTS:
            cause = "was killed" if experiment.was_killed else "found DVC busy"
            self._say(f"{experiment.name} {cause}; starting it again")
            self._start(trial)
        elif experiment.was_stopped:  # by hand
            self._end(number, Outcome.STOPPED)
        elif experiment.has_diverged:
            self._end(number, Outcome.DIVERGED, reason=experiment.error)
        else:
            self._end(number, Outcome.FAILED, reason=experiment.error)

    def _report(self, number: int, trial: _Trial) -> None:
        for validation in list(trial.experiment.validations())[trial.seen :]:
            trial.seen += 1
            is_pruned = self.search.report(number, validation.step, validation.bits_per_byte)
            if is_pruned and trial.kill_at is None:
                self._say(f"{trial.experiment.name} is stopped at step {validation.step}, as others were better there")
                trial.kill_at = time.monotonic() + _STOP_SECONDS
                trial.experiment.prune(validation.step)

    def _end(self, number: int, outcome: Outcome, value: float | None = None, reason: str | None = None) -> None:
        """Tell Optuna, MLflow and the user how a trial ended.

        Raises:
            PipelineError: one trial after the other has failed.
        """
        trial = self._running[number]
        self.search.tell(number, outcome, value, reason)
        del self._running[number]
        self._free.append(trial.share)
        rows = self.search.rows()
        best = table.best(rows)
        if value is not None and best is not None and best.bits_per_byte is not None:
            values = {"sweep/bits_per_byte": value, "sweep/best_bits_per_byte": best.bits_per_byte}
            self._run.record(number, values)
        if outcome is not Outcome.FAILED:
            trial.experiment.remove_states()
        self._say(table.ending(self.study, rows, rows[number]))
        self._failures = self._failures + 1 if outcome is Outcome.FAILED else 0
        if self._failures == _FAILURES:
            raise PipelineError(
                f"{self.study.name}: {_FAILURES} trials failed in a row, the last: {reason}; {trial.experiment.log} "
                "has the rest; fix that, and the same command continues"
            )

    def _end_running(self) -> None:
        """Stop the trials that still run; they stay unfinished, and the next start continues them."""
        experiments = [trial.experiment for trial in self._running.values()]
        for experiment in experiments:
            if experiment.poll():
                experiment.stop()
        if not wait_until_ended(experiments, _STOP_SECONDS):
            for experiment in experiments:
                experiment.kill()

    def _end_run(self, status: str) -> None:
        rows = self.search.rows()
        table.write(self.directory / "trials.csv", self.study.name, rows)
        tags = {}
        best = table.best(rows)
        if best is not None:
            name = table.trial_name(self.study.name, best.number)
            tags = {
                "best.trial": name,
                "best.bits_per_byte": str(best.bits_per_byte),
                "restore": f"dvc exp apply {name}",
            }
        shutil.copyfile(self.study.path, self.directory / "study.yaml")
        self._run.end(status, tags, {name: self.directory / name for name in ("trials.csv", "study.yaml")})

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM end the sweep in order; a second one kills it."""

        def note(number: int, frame: FrameType | None) -> None:
            self._stop()
            signal.signal(number, signal.SIG_DFL)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        """End the sweep in order, with its running trials saved."""
        self._is_stopping = True

    def _say(self, line: str) -> None:
        say(f"{self.study.name}: {line}")
