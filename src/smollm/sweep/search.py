"""What Optuna knows of a study: its trials, in `study.db` of the study's folder, and which values to try next."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm.errors import PipelineError, StorageError
from smollm.sweep.study_file import PrunerKind, SamplerKind, Space, Study, Value
from smollm.tracking.mlflow_store import sqlite_uri

if TYPE_CHECKING:
    import optuna

REQUIREMENT = "optuna>=5,<6"
"""As in pyproject.toml."""

_REASON = "reason"
_BEGAN_WITH = "began_with"
_BUSY_SECONDS = 60.0


class Outcome(Enum):
    """How a trial ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    """By the pruner or a user."""
    DIVERGED = "diverged"
    FAILED = "failed"
    RUNNING = "running"


@dataclass(frozen=True)
class Row:
    """A trial as people see it."""

    number: int
    outcome: Outcome
    values: dict[str, Value]
    bits_per_byte: float | None
    """The best of a complete trial, the last of another; None where nothing was validated."""
    step: int | None
    """Of the last validation."""
    reason: str | None
    """Why it failed."""


def import_optuna() -> Any:
    """
    Raises:
        PipelineError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise PipelineError(
            f"a study needs optuna, which is not installed; run `{sys.executable} -m pip install '{REQUIREMENT}'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Make an error of the study's database one that the user can fix.

    Raises:
        StorageError: in place of SQLAlchemy's and Optuna's.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("optuna", "sqlalchemy", "sqlite3"):
            raise
        cause = error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise StorageError(
            f"cannot read or write {directory / 'study.db'} ({reason!r}); fix that, and the same command continues"
        ) from error


class Search:
    """The trials of one study. What was told is on the disk when a method returns."""

    def __init__(self, study: Study, directory: Path) -> None:
        """
        Args:
            study: what to vary.
            directory: the study's folder, which exists.

        Raises:
            PipelineError: Optuna is not installed, or the study began with other settings.
        """
        self._plan, self._spaces = study.plan, study.params
        self._optuna = import_optuna()
        storage = self._optuna.storages.RDBStorage(
            sqlite_uri(directory / "study.db"), engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}}
        )
        self._study: optuna.Study = self._optuna.create_study(
            storage=storage, study_name=study.name, load_if_exists=True, pruner=self._pruner()
        )

    @property
    def began_with(self) -> dict[str, Any]:
        """What all trials have in common, as the first start of the study noted it; empty before."""
        noted: dict[str, Any] = self._study.user_attrs.get(_BEGAN_WITH, {})
        return noted

    def note_beginning(self, common: dict[str, Any]) -> None:
        self._study.set_user_attr(_BEGAN_WITH, common)

    def unfinished(self) -> list[int]:
        """Trials that a killed sweep has left running."""
        return [row.number for row in self.rows() if row.outcome is Outcome.RUNNING]

    def remaining(self) -> int:
        """How many trials are still to be begun: those that failed do not count."""
        counted = sum(row.outcome is not Outcome.FAILED for row in self.rows())
        return max(0, self._plan.trials - counted)

    def ask(self) -> int:
        """Begin a trial, and return its number; `choose` gives it values."""
        return self._study.ask().number

    def choose(self, number: int) -> dict[str, Value]:
        """Choose and note the values of a running trial; where that was done before, return those.

        They are a function of the study's seed, the trial's number and the trials before it, whatever was killed.
        """
        self._study.sampler = self._sampler(number)
        trial = self._trial(number)
        return {name: _suggest(trial, name, space) for name, space in self._spaces.items()}

    def report(self, number: int, step: int, bits_per_byte: float) -> bool:
        """Note a validation; returns whether the trial is to be stopped."""
        trial = self._trial(number)
        if step not in self._study.trials[number].intermediate_values:
            trial.report(bits_per_byte, step)
        return bool(self._trial(number).should_prune())

    def tell(self, number: int, outcome: Outcome, value: float | None = None, reason: str | None = None) -> None:
        """End a trial.

        Args:
            number: of the trial.
            outcome: how it ended.
            value: best bits per byte of a complete trial.
            reason: of one that failed or diverged.
        """
        states = self._optuna.trial.TrialState
        if reason is not None:
            self._trial(number).set_user_attr(_REASON, reason)
        self._trial(number).set_user_attr("outcome", outcome.value)
        if outcome is Outcome.COMPLETE:
            self._study.tell(number, value)
        else:  # to Optuna a diverged trial is one that was stopped before it was any good
            self._study.tell(number, state=states.FAIL if outcome is Outcome.FAILED else states.PRUNED)

    def rows(self) -> list[Row]:
        """All trials in the order of their beginning."""
        states = self._optuna.trial.TrialState
        rows = []
        for trial in self._study.get_trials(deepcopy=False):
            outcome = Outcome.RUNNING
            if trial.state.is_finished():
                default = {states.COMPLETE: "complete", states.PRUNED: "stopped"}.get(trial.state, "failed")
                outcome = Outcome(trial.user_attrs.get("outcome", default))
            last = trial.last_step
            value = trial.value if outcome is Outcome.COMPLETE else None
            if value is None and last is not None:
                value = trial.intermediate_values[last]
            rows.append(Row(trial.number, outcome, trial.params, value, last, trial.user_attrs.get(_REASON)))
        return rows

    def _trial(self, number: int) -> "optuna.Trial":
        trial: optuna.Trial = self._optuna.trial.Trial(self._study, self._study.trials[number]._trial_id)
        return trial

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """A sampler whose random numbers are the trial's own: one seed for all would repeat them after each kill."""
        seed = (self._plan.seed + 1_000_003 * number) % 2**32
        samplers = self._optuna.samplers
        kinds = {SamplerKind.TPE: samplers.TPESampler, SamplerKind.RANDOM: samplers.RandomSampler}
        sampler: optuna.samplers.BaseSampler = kinds[self._plan.sampler](seed=seed)
        return sampler

    def _pruner(self) -> "optuna.pruners.BasePruner":
        pruner, pruners = self._plan.pruner, self._optuna.pruners
        made: optuna.pruners.BasePruner = pruners.NopPruner()
        if pruner.kind is PrunerKind.MEDIAN:
            made = pruners.MedianPruner(n_startup_trials=pruner.first_trials, n_warmup_steps=pruner.first_step)
        return made


def _suggest(trial: "optuna.Trial", name: str, space: Space) -> Value:
    if space.choices:
        return trial.suggest_categorical(name, space.choices)
    if space.is_whole:
        return trial.suggest_int(name, int(space.low), int(space.high), log=space.is_log)
    return trial.suggest_float(name, space.low, space.high, log=space.is_log)
