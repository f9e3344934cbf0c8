"""What the loop of a study makes of each end of a trial."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.structure import ROOT

pytest.importorskip("optuna")

from smollm.config.file import load, read_values
from smollm.errors import PipelineError, StateError
from smollm.state.workspace import Workspace
from smollm.sweep import runner as runner_module
from smollm.sweep.experiment import Validation
from smollm.sweep.runner import Runner
from smollm.sweep.search import Outcome, Search
from smollm.sweep.study_file import Plan, PrunerConfig, PrunerKind, SamplerKind, Space, Stage, Study


@dataclass
class Script:
    """How the trials go, one after the other; without a result a trial has failed."""

    results: list[float | None]
    validations: list[list[float]] = field(default_factory=list)
    """Of each trial; all but the first go on until they are stopped."""
    has_diverged: bool = False
    was_killed: bool = False
    was_stopped: bool = False
    starts: list[str] = field(default_factory=list)


class Trial:
    """Stands for an experiment of DVC's: it ends as soon as it has started, unless it can be stopped."""

    script: Script
    error, was_shut_out, has_begun = "no room", False, True

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.log, self._is_running, self._is_done = name, Path(f"{name}.log"), False, False

    def start(self, values: dict[str, Any], variables: dict[str, str]) -> None:
        self.script.starts.append(self.name)
        self._is_done, self._is_running = True, bool(self.script.validations) and len(self.script.starts) > 1

    def poll(self) -> bool:
        return self._is_running

    def result(self) -> float | None:
        return self.script.results[len(self.script.starts) - 1] if self._is_done and not self._is_running else None

    def validations(self) -> Iterator[Validation]:
        values = self.script.validations[len(self.script.starts) - 1] if self.script.validations else []
        yield from (Validation(10 * n, value) for n, value in enumerate(values))

    def prune(self, step: int) -> None:
        self.stop()

    def stop(self) -> None:
        self._is_running = False

    def remove_states(self) -> None:
        pass

    def __getattr__(self, name: str) -> bool:
        return bool(getattr(self.script, name))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a study of two trials by a script, and returns its rows."""

    class Run:
        begin = record = end = lambda self, *_: ""

    study = Study(
        ROOT / "sweeps" / "learning-rate.yaml",
        Plan(Stage.PRETRAIN, 2, SamplerKind.RANDOM, 1, PrunerConfig(PrunerKind.MEDIAN, 1, 0)),
        {"pretrain.optimizer.lr": Space(1e-3, 1e-2)},
        read_values(ROOT / "params.yaml"),
    )
    monkeypatch.setattr(runner_module, "SweepRun", lambda *_: Run())
    monkeypatch.setattr(runner_module, "Experiment", Trial)
    monkeypatch.setattr(runner_module, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(runner_module, "check_common", lambda *_: None)
    monkeypatch.setattr(runner_module, "check_names", lambda *_: None)

    def run_script(script: Script) -> Search:
        Trial.script = script
        search = Search(study, tmp_path)
        tracking = load(ROOT / "params.yaml").tracking
        Runner(study, search, tmp_path, Workspace(ROOT, ROOT), tracking, [{}]).run()
        return search

    return run_script


def outcomes(search: Search) -> list[Outcome]:
    return [row.outcome for row in search.rows()]


def test_complete_trials_end_the_study(run: Any) -> None:
    assert outcomes(run(Script([2.0, 1.0]))) == 2 * [Outcome.COMPLETE]


def test_a_failed_trial_is_replaced(run: Any) -> None:
    search = run(Script([None, 2.0, 1.0]))
    assert outcomes(search) == [Outcome.FAILED, Outcome.COMPLETE, Outcome.COMPLETE]
    assert search.rows()[0].reason == "no room"


def test_three_failures_in_a_row_end_the_sweep(run: Any) -> None:
    with pytest.raises(PipelineError, match="3 trials failed in a row, the last: no room; learning-rate-3"):
        run(Script([2.0, None, None, None, 1.0]))


def test_a_diverged_trial_counts(run: Any) -> None:
    assert outcomes(run(Script([2.0, None], has_diverged=True))) == [Outcome.COMPLETE, Outcome.DIVERGED]


def test_one_that_a_user_stops_counts(run: Any) -> None:
    assert outcomes(run(Script([2.0, None], was_stopped=True))) == [Outcome.COMPLETE, Outcome.STOPPED]


def test_a_killed_trial_is_started_again_but_not_for_ever(run: Any) -> None:
    script = Script([None, 2.0, 1.0], was_killed=True)
    assert outcomes(run(script)) == 2 * [Outcome.COMPLETE]
    assert script.starts == ["learning-rate-0", "learning-rate-0", "learning-rate-1"]


def test_the_worse_trial_is_stopped(run: Any) -> None:
    search = run(Script([1.0, None], validations=[[3.0, 1.0], [3.0, 2.0]]))
    assert outcomes(search) == [Outcome.COMPLETE, Outcome.STOPPED]
    assert search.rows()[1].step == 10


def test_settings_that_params_yaml_refuses_fail_without_a_start(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise runner_module.ConfigError("params.yaml: no\nparams.yaml: no again")

    monkeypatch.setattr(runner_module, "config_of", refuse)
    script = Script([])
    with pytest.raises(PipelineError, match=r"the last: params\.yaml: no;"):
        run(script)
    assert script.starts == []


def test_a_signal_ends_the_sweep_and_the_trial_stays_unfinished(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Runner, "_look", lambda self, *_: runner_module.signal.raise_signal(runner_module.signal.SIGTERM)
    )
    with pytest.raises(
        StateError, match="learning-rate: stopped, its running trials saved; the same command continues"
    ):
        run(Script([2.0]))
