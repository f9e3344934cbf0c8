"""What is left in MLflow of runs that were deleted there."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow.cli import gc

from smollm.tracking import prune
from smollm.tracking.mlflow_store import MlflowStore, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


def add_run(store: MlflowStore, client: "MlflowClient", bits_per_byte: float) -> str:
    """A run with a file, a logged model and a version in the registry; its id."""
    experiment = store.experiment_id(client, "smollm")
    run_id = str(client.create_run(experiment).info.run_id)
    client.log_text(run_id, "log", "log.txt")
    client.create_logged_model(experiment, "finetune-last", run_id)
    tags = {"metrics.corpus": "a", "metrics.exported_bits_per_byte": str(bits_per_byte)}
    version = client.create_model_version("smollm", f"runs:/{run_id}/model", run_id, tags=tags)
    client.set_registered_model_alias("smollm", "best", version.version)
    return run_id


def files(store: MlflowStore) -> set[str]:
    """The runs that have files in the repository."""
    return {path.parents[1].name for path in store.root.glob("artifacts/*/*/artifacts/log.txt")}


def test_nothing_leads_to_a_run_that_was_deleted_and_pruned(tmp_path: Path) -> None:
    original = MlflowStore(sqlite_uri(tmp_path / "mlruns" / "mlflow.db"), tmp_path / "mlruns")
    client = original.client()
    client.create_registered_model("smollm")
    kept, deleted, gone = (add_run(original, client, bits_per_byte) for bits_per_byte in (1.3, 1.2, 1.1))
    client.delete_run(gone)
    gc.main(["--backend-store-uri", original.uri, "--tracking-uri", original.uri], standalone_mode=False)
    client.delete_run(deleted)
    shutil.copytree(tmp_path / "mlruns", tmp_path / "copy" / "mlruns")
    store = MlflowStore(sqlite_uri(tmp_path / "copy" / "mlruns" / "mlflow.db"), tmp_path / "copy" / "mlruns")
    assert prune.prune(store) == 1
    client = store.client()
    experiment = store.experiment_id(client, "smollm")
    assert [model.source_run_id for model in client.search_logged_models([experiment])] == [kept]
    assert [version.run_id for version in client.search_model_versions("name = 'smollm'")] == [kept]
    assert client.get_model_version_by_alias("smollm", "best").run_id == kept
    assert files(store) == {kept}
    assert files(original) == {kept, deleted}, "of another repository"
    with pytest.raises(Exception, match="not found"):
        client.get_run(deleted)
    assert prune.prune(store) == 0


def test_a_store_of_others_is_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@server.test")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"own store, got http://server\.test; use `mlflow gc` on its machine"):
        prune.main()
