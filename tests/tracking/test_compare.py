"""The table of runs."""

import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from smollm.tracking.compare import main, table
from smollm.tracking.mlflow_store import MlflowStore

ROOT = Path(__file__).resolve().parents[2]

RUNS = pd.DataFrame(
    {
        "run_id": ["r1", "r2", "r3"],
        "status": ["FINISHED", "FINISHED", "RUNNING"],
        "start_time": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"]),
        "tags.mlflow.runName": ["a", "b", "c"],
        "tags.stage": ["pretrain", "pretrain", "finetune"],
        "tags.git.commit": ["0123456789", "abcdef0123", None],
        "metrics.train/loss": [2.0, 1.0, 3.0],
        "metrics.validation/bits_per_byte": [1.2, 1.1, None],
        "metrics.validation/best_bits_per_byte": [1.1, 1.1, None],
        "tags.dvc.out.checkpoints/pretrain": ["0123456789.dir", None, "of another stage"],
        "tags.dvc.out.checkpoints/finetune": [None, None, "fedcba9876.dir"],
        "params.pretrain.optimizer.lr": ["0.1", "0.2", None],
        "params.seed": ["1", "1", "2"],
        "params.model.hidden_size": ["64", "64", "64"],
        "tags.hardware.device_name": ["one", "another", "one"],
        "tags.hardware.torch": ["2", "2", "2"],
    }
)


def test_only_params_that_differ_within_a_stage_are_shown() -> None:
    columns = list(table(RUNS, None, "started").columns)
    assert "pretrain.optimizer.lr" in columns
    assert "model.hidden_size" not in columns
    assert "seed" not in columns


def test_hardware_that_differs_is_shown_beside_the_speed_that_it_explains() -> None:
    columns = list(table(RUNS, None, "started").columns)
    assert "hardware.device_name" in columns
    assert "hardware.torch" not in columns


def test_newest_first_or_sorted_by_a_column() -> None:
    assert list(table(RUNS, None, "started")["run"]) == ["c", "b", "a"]
    assert list(table(RUNS, None, "bits_per_byte")["run"]) == ["b", "a", "c"]
    assert list(table(RUNS, None, "bits_per_byte", descending=True)["run"]) == ["a", "b", "c"]


def test_a_run_has_its_best_value_and_the_digest_of_its_checkpoint() -> None:
    compared = table(RUNS, None, "started")
    assert list(compared["checkpoint"]) == ["fedcba98", "", "01234567"]
    assert list(compared["best_bits_per_byte"])[1:] == [1.1, 1.1]


def test_one_stage_alone() -> None:
    assert list(table(RUNS, "finetune", "started")["run"]) == ["c"]


def test_an_unknown_column_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="--sort must name a column, got 'speed'; use one of run, stage"):
        table(RUNS, None, "speed")


def test_runs_without_the_pipelines_tags_are_shown_too() -> None:
    assert len(table(RUNS.drop(columns=["tags.git.commit"]), None, "started")) == 3
    others = RUNS.drop(columns=["tags.stage"])
    assert len(table(others, None, "started")) == 3
    assert table(others, "pretrain", "started").empty


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make compare` without arguments."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(sys, "argv", ["compare"])


@pytest.mark.usefixtures("command")
def test_times_are_local_as_in_the_training_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = RUNS.assign(start_time=RUNS["start_time"].dt.tz_localize("UTC"))
    monkeypatch.setattr(MlflowStore, "search_runs", lambda self, experiment: runs)
    with monkeypatch.context() as place:
        place.setenv("TZ", "UTC-5:30")
        time.tzset()
        main()
    time.tzset()
    assert "2026-01-01 05:30" in capsys.readouterr().out


@pytest.mark.usefixtures("command")
def test_a_dead_server_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit, match=r"^ERROR: MLflow \(http://127.0.0.1:9\) failed: .*; try again later"):
        main()


@pytest.mark.usefixtures("command")
def test_no_runs_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlflowStore, "search_runs", lambda self, experiment: pd.DataFrame())
    with pytest.raises(SystemExit, match=r"^No runs yet in experiment 'smollm' of .*; `dvc repro` makes some$"):
        main()
