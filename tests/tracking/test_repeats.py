"""Means over seeds."""

import pandas as pd
import pytest

from smollm.tracking.repeats import repeats, text


def runs(*rows: dict[str, object]) -> pd.DataFrame:
    """What MLflow gives for finished runs of pretrain with these values."""
    usual = {
        "status": "FINISHED",
        "tags.stage": "pretrain",
        "tags.dvc.dep.data/tokens/pretrain": "c",
        "params.runtime.device": "cpu",
    }
    made = [
        {"start_time": pd.Timestamp("2026-01-01") + pd.Timedelta(days=n), **usual, **row} for n, row in enumerate(rows)
    ]
    return pd.DataFrame(made)


def run(seed: int, value: float, rate: str = "0.1", **others: object) -> dict[str, object]:
    metrics = ("metrics.validation/best_bits_per_byte", "metrics.validation/bits_per_byte", "metrics.train/loss")
    return {"params.seed": str(seed), "params.pretrain.optimizer.lr": rate, **dict.fromkeys(metrics, value), **others}


def test_runs_that_differ_in_seed_alone_are_one_row_with_mean_and_deviation() -> None:
    table = repeats(runs(run(1, 1.0), run(2, 2.0), run(3, 3.0), run(1, 4.0, "0.2"), run(2, 6.0, "0.2")))
    assert list(table["pretrain.optimizer.lr"]) == ["0.1", "0.2"], "the best first"
    assert list(table["seeds"]) == [3, 2]
    assert list(table["best_bits_per_byte"]) == [2.0, 5.0]
    assert list(table["best_bits_per_byte_deviation"]) == pytest.approx([1.0, 2**0.5])
    assert "2.0000 ± 1.0000" in text(table)


def test_a_single_run_has_no_row() -> None:
    assert repeats(runs(run(1, 1.0), run(1, 2.0, "0.2"))).empty


def test_other_tokens_and_stages_are_other_groups_and_other_ways_to_run_are_not() -> None:
    assert repeats(runs(run(1, 1.0), run(2, 1.0, **{"tags.dvc.dep.data/tokens/pretrain": "d"}))).empty
    assert repeats(runs(run(1, 1.0), run(2, 1.0, **{"tags.stage": "finetune"}))).empty
    assert list(repeats(runs(run(1, 1.0), run(2, 1.0, **{"params.runtime.device": "cuda"})))["seeds"]) == [2]


def test_a_seed_counts_once_by_its_newest_run_and_only_when_finished() -> None:
    table = repeats(runs(run(1, 9.0), run(1, 1.0), run(2, 3.0), run(3, 9.0, status="KILLED")))
    assert list(table["seeds"]) == [2]
    assert list(table["best_bits_per_byte"]) == [2.0]


def test_params_that_a_stage_does_not_have_keep_no_group_apart() -> None:
    table = repeats(runs(run(1, 1.0), run(2, 2.0), {"tags.stage": "tokenize", "params.corpus.x": "1"}))
    assert list(table["seeds"]) == [2]


def test_runs_of_finetune_are_repeats_where_their_pretrain_runs_are() -> None:
    made, used = "tags.dvc.out.checkpoints/pretrain", "tags.dvc.dep.checkpoints/pretrain"

    def finetune(seed: int, digest: str) -> dict[str, object]:
        row = {name: value for name, value in run(seed, float(seed)).items() if "optimizer" not in name}
        return {**row, "tags.stage": "finetune", used: digest}

    before = [run(1, 1.0, **{made: "a"}), run(2, 2.0, **{made: "b"}), run(3, 2.0, "0.2", **{made: "c"})]
    table = repeats(runs(*before, *(finetune(n, digest) for n, digest in enumerate("abcde", 1))), "finetune")
    assert list(table["seeds"]) == [2]
    assert list(table["best_bits_per_byte"]) == [1.5]


def test_runs_without_the_pipelines_params_have_none() -> None:
    assert repeats(pd.DataFrame({"run_id": ["r"], "status": ["FINISHED"]})).empty
