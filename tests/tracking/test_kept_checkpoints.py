"""Checkpoints as MLflow's LoggedModels, and the aliases of its registry."""

import json
from dataclasses import asdict
from pathlib import Path

import mlflow
import pytest
from support.clone import empty_store

from smollm.state.files import write_json
from smollm.state.journal import Kind, Record
from smollm.tracking.delivery import Delivery
from smollm.tracking.kept_checkpoints import kept_checkpoints
from smollm.tracking.mlflow_store import MlflowStore, sqlite_uri
from smollm.tracking.run_record import Dataset, ModelVersion, RunDescription, RunEnd
from smollm.tracking.upload import upload

TAGS = {"dvc.out.checkpoints/pretrain": "abc.dir", "restore": "git checkout ..."}


@pytest.fixture
def store(tmp_path: Path) -> MlflowStore:
    root = tmp_path / "mlruns"
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty_store().read_bytes())
    return MlflowStore(sqlite_uri(root / "mlflow.db"), root)


def validation(step: int, bits_per_byte: float) -> Record:
    values = {"loss": 3 * bits_per_byte, "bits_per_byte": bits_per_byte}
    return Record(Kind.VALIDATION, step, 1_700_000_000.0 + step, values)


def send_run(directory: Path, store: MlflowStore, bits_per_byte: dict[int, float], corpus: str) -> str:
    """Send a finished run with these validations by step, twice, as after a kill; return its id."""
    directory.mkdir()
    best, last = min(bits_per_byte, key=lambda step: bits_per_byte[step]), max(bits_per_byte)
    data = [Dataset(f"pretrain/{what}", "1.dir", what, f"data/{what}.bin", {}) for what in ("training", "validation")]
    description = RunDescription(directory.name, "smollm", "pretrain", 1_700_000_000.0, "me", {}, {}, data)
    records = [validation(step, value) for step, value in bits_per_byte.items()]
    lines = [json.dumps({**asdict(record), **record.values}) + "\n" for record in records]
    (directory / "journal.jsonl").write_text("".join(lines))
    metrics = {"step": last, "best_step": best, "exported_step": best, "corpus": corpus}
    checkpoints = list(kept_checkpoints("pretrain", records, metrics, TAGS))
    tags = {"metrics.corpus": corpus, "metrics.exported_bits_per_byte": str(bits_per_byte[best])}
    delivery = Delivery(directory, store)
    delivery.begin(description)
    delivery.end(RunEnd("FINISHED", 1_700_000_100.0, {}, ModelVersion("smollm", "", tags, "model"), checkpoints), {})
    client = store.client()
    upload(delivery, client)
    write_json(directory / "delivery.json", {**delivery.state, "done": False, "offset": 0})
    upload(Delivery(directory, store), client)
    return str(delivery.run_id)


def test_checkpoints_rank_over_all_runs_by_their_validation(store: MlflowStore, tmp_path: Path) -> None:
    overfitted = send_run(tmp_path / "overfitted", store, {100: 2.0, 200: 1.5, 300: 3.0}, "text")
    steady = send_run(tmp_path / "steady", store, {100: 2.5, 200: 1.9}, "text")
    client = store.client()
    experiment = client.get_experiment_by_name("smollm").experiment_id
    models = client.search_logged_models(
        [experiment], order_by=[{"field_name": "metrics.validation/bits_per_byte", "ascending": True}]
    )
    ranked = [
        (model.source_run_id, model.name, metric.step, metric.value, metric.dataset_name)
        for model in models
        for metric in model.metrics
        if metric.key == "validation/bits_per_byte"
    ]
    assert ranked == [
        (overfitted, "pretrain-best", 200, 1.5, "pretrain/validation"),
        (steady, "pretrain-last", 200, 1.9, "pretrain/validation"),
        (overfitted, "pretrain-last", 300, 3.0, "pretrain/validation"),
    ]
    assert {str(model.status) for model in models} == {"READY"}
    assert models[0].params["path"] == "checkpoints/pretrain/best"
    assert models[0].params["dvc_md5"] == "abc.dir"
    outputs = client.get_run(overfitted).outputs.model_outputs
    assert sorted(output.step for output in outputs) == [200, 300]
    history = client.get_metric_history(overfitted, "validation/bits_per_byte")
    assert [(point.step, point.value) for point in history] == [(100, 2.0), (200, 1.5), (300, 3.0)]


def test_best_is_an_alias_within_a_text_and_latest_is_the_newest(store: MlflowStore, tmp_path: Path) -> None:
    client = store.client()
    best = send_run(tmp_path / "best", store, {100: 1.5}, "text")
    assert client.get_model_version_by_alias("smollm", "best").run_id == best
    worse = send_run(tmp_path / "worse", store, {100: 1.9}, "text")
    assert client.get_model_version_by_alias("smollm", "best").run_id == best
    easier = send_run(tmp_path / "easier", store, {100: 0.5}, "an easier text")
    assert client.get_model_version_by_alias("smollm", "best").run_id == easier
    again = send_run(tmp_path / "again", store, {100: 1.7}, "text")
    assert client.get_model_version_by_alias("smollm", "best").run_id == best
    versions = client.search_model_versions("name = 'smollm'", order_by=["version_number ASC"])
    assert [version.run_id for version in versions] == [best, worse, easier, again]
    for version in versions:
        assert client.get_logged_model(version.tags["logged_model"]).source_run_id == version.run_id


def test_latest_leads_to_the_newest_version(store: MlflowStore, tmp_path: Path) -> None:
    send_run(tmp_path / "older", store, {100: 1.5}, "text")
    send_run(tmp_path / "newer", store, {100: 1.9}, "text")
    store.client()
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    assert get_model_name_and_version(mlflow.MlflowClient(store.uri), "models:/smollm/latest") == ("smollm", "2")
