"""The table of runs."""

import pandas as pd
import pytest

from smollm.compare import table

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
