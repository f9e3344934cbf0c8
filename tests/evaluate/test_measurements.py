"""Each measurement is kept once it is taken, whatever ends the stage after it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.held_out import SETTINGS

from smollm.device.hardware import Hardware
from smollm.errors import CorpusError, Interrupted
from smollm.evaluate import stage as stage_module
from smollm.evaluate.stage import EvaluateStage, _Measurements
from smollm.stage.run import StageRun
from smollm.state.journal import Journal
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace


@pytest.fixture
def measurements(tmp_path: Path, cpu: Hardware, monkeypatch: pytest.MonkeyPatch) -> _Measurements:
    """Of no text and of two tasks."""
    (tmp_path / "data").mkdir()
    settings = SimpleNamespace(**vars(SETTINGS) | {"tasks": ("first", "second")})
    workspace = Workspace(tmp_path, tmp_path)
    stage = SimpleNamespace(
        evaluate=settings, finetune=SimpleNamespace(sequence_length=16), workspace=workspace, seed=1
    )
    state = SimpleNamespace(directory=tmp_path, journal=Journal(tmp_path / "journal.jsonl"))
    monkeypatch.setattr(stage_module, "TEXTS", ())
    monkeypatch.setattr(stage_module.tasks, "check", lambda tasks, workspace: None)
    monkeypatch.setattr(_Measurements, "_texts", ())
    monkeypatch.setattr(_Measurements, "_loaded", (None, None, cpu))
    return _Measurements(cast(EvaluateStage, stage), StageRun("evaluate", workspace, cast(LiveState, state)))


def test_a_task_that_cannot_be_run_costs_no_other(measurements: _Measurements, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def run(name: str, *_: Any) -> dict[str, dict[str, float]]:
        tried.append(name)
        if name == "second":
            raise CorpusError("no data")
        return {name: {"acc": 0.5}}

    monkeypatch.setattr(stage_module.tasks, "run", run)
    for _ in range(2):
        with pytest.raises(CorpusError):
            measurements.take()
    assert tried == ["first", "second", "second"]


def test_a_user_who_stops_it_in_mlflow_waits_for_one_measurement(
    measurements: _Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def run(name: str, *_: Any) -> dict[str, dict[str, float]]:
        tried.append(name)
        measurements.run.stop_request.set()
        return {name: {"acc": 0.5}}

    monkeypatch.setattr(stage_module.tasks, "run", run)
    with pytest.raises(Interrupted, match="its tag `stop`"):
        measurements.take()
    assert tried == ["first"]
