"""What watches a stage never fails it."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from smollm.config.tracking import TrackingConfig
from smollm.errors import Interrupted
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace
from smollm.tracking.observer import RunInputs, StageObserver
from smollm.tracking.run_record import RunEnd
from smollm.tracking.tracker import Tracker

SETTINGS = TrackingConfig("smollm", 1.0, 10.0, 1.0, None, store_weights=False)


@pytest.fixture
def observer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageObserver:
    """Of a stage in a folder that has params and nothing else."""
    (tmp_path / "params.yaml").write_text("preset: tiny\n")
    (tmp_path / "dvc.yaml").write_text("stages: {pretrain: {params: [], outs: [reports/pretrain/log.txt]}}")
    monkeypatch.setattr(Tracker, "start", lambda self, description: self.delivery.begin(description))
    (tmp_path / "state").mkdir()
    state = SimpleNamespace(directory=tmp_path / "state", fingerprint="abc", inputs={}, abandoned=list)
    return StageObserver("pretrain", Workspace(tmp_path, tmp_path), cast(LiveState, state), SETTINGS)


def test_outputs_that_cannot_be_read_leave_a_finished_run(
    observer: StageObserver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_ends: list[RunEnd] = []
    monkeypatch.setattr(Tracker, "end", lambda self, run_end, artifacts: run_ends.append(run_end))
    observer.begin(RunInputs({}))
    observer.finish({}, None)  # there is no metrics.json
    assert [run_end.status for run_end in run_ends] == ["FINISHED"]
    assert "pretrain: MLflow is missing the final tags and files of this run: [Errno 2]" in capsys.readouterr().out


def test_the_run_of_a_trial_does_not_say_that_dvc_repro_continues_it(
    observer: StageObserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags: list[str] = []
    monkeypatch.setattr(Tracker, "end", lambda self, run_end, artifacts: tags.append(run_end.tags["error"]))

    def end_by(error: BaseException) -> None:
        with pytest.raises(type(error)), observer.reporting_failure({}):
            raise error

    end_by(Interrupted(signal.SIGTERM, 7))
    monkeypatch.setenv("SMOLLM_SWEEP_RUN", "sweep-rates-1")
    end_by(Interrupted(signal.SIGTERM, 7))
    end_by(SystemExit(143))
    end_by(SystemExit(2))
    (observer.state.directory / "pruned").write_text("pruned by its study")
    end_by(Interrupted(signal.SIGTERM, 7))
    saved = "; its state is saved, and `dvc repro` continues"
    stopped = "Interrupted: stopped by SIGTERM"
    assert tags == [
        f"{stopped} after step 7{saved}",
        f"{stopped} after step 7",
        stopped,
        "SystemExit: 2",
        "Interrupted: pruned by its study",
    ]


@pytest.mark.parametrize("content", [None, "", "{torn"])
def test_a_parent_that_cannot_be_read_is_none(observer: StageObserver, content: str | None, tmp_path: Path) -> None:
    parent = tmp_path / "run.json"
    if content is not None:
        parent.write_text(content)
    observer.begin(RunInputs({}, parent=parent))
    assert observer.tracker.delivery.description.parent_run_id is None
