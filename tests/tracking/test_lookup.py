"""Runs found in a real store by id, by its start, and through the model registry."""

import shutil
from pathlib import Path

import pytest
from support.clone import empty_store

from smollm.tracking.lookup import artifact_texts, can_name_a_run, find_runs
from smollm.tracking.mlflow_store import MlflowStore, sqlite_uri


@pytest.fixture
def store(tmp_path: Path) -> MlflowStore:
    shutil.copyfile(empty_store(), tmp_path / "mlflow.db")
    return MlflowStore(sqlite_uri(tmp_path / "mlflow.db"), tmp_path)


def test_runs_of_all_experiments_are_found_by_their_ids_and_the_start_of_them(store: MlflowStore) -> None:
    client = store.client()
    experiments = [store.experiment_id(client, name) for name in ("one", "two")]
    ids = [client.create_run(experiment, tags={"stage": "pretrain"}).info.run_id for experiment in experiments]
    for run_id in ids:
        for name in (run_id, run_id[:10]):
            (run,) = find_runs(store, name)
            assert (run.run_id, run.status, run.tags["stage"]) == (run_id, "RUNNING", "pretrain")
    assert find_runs(store, "0" * 32) == []
    assert {run.run_id for start in "0123456789abcdef" for run in find_runs(store, start)} == set(ids)


def test_a_version_of_the_registry_is_found_by_alias_and_by_number(store: MlflowStore) -> None:
    client = store.client()
    run_id = client.create_run("0").info.run_id
    client.create_registered_model("smollm")
    client.create_model_version("smollm", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("smollm", "best", "1")
    for name in ("models:/smollm@best", "models:/smollm@latest", "models:/smollm/1"):
        assert [run.run_id for run in find_runs(store, name)] == [run_id]
    for name in ("models:/smollm@worst", "models:/smollm/2", "models:/other/1"):
        assert find_runs(store, name) == []


def test_the_texts_that_a_run_has_are_read(store: MlflowStore) -> None:
    client = store.client()
    run_id = client.create_run(store.experiment_id(client, "one")).info.run_id
    client.log_text(run_id, "seed: 1\n", "params.yaml")
    assert artifact_texts(store, run_id, ["params.yaml", "metrics.json"]) == {"params.yaml": "seed: 1\n"}


@pytest.mark.parametrize(
    ("text", "can"),
    [("0123abcd", True), ("012", False), ("main", False), ("models:/a@best", True), ("models/finetune", False)],
)
def test_what_has_the_form_of_a_runs_name(text: str, can: bool) -> None:
    assert can_name_a_run(text) is can
