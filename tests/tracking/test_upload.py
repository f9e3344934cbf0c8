"""What a real MLflow store has of a run: all of it, and each point once."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.clone import empty_store
from support.deliveries import DESCRIPTION, only_run, points, record_steps

from smollm.state.files import write_json
from smollm.state.journal import Journal, Kind
from smollm.tracking.deadline import Deadline
from smollm.tracking.delivery import Delivery
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.run_record import ModelVersion, RunEnd
from smollm.tracking.upload import upload

if TYPE_CHECKING:
    from mlflow import MlflowClient


def test_everything_arrives(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    delivery = Delivery(state, store)
    upload(delivery, client)
    run = only_run(client)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "pretrain-abc"
    assert run.data.params == DESCRIPTION.params
    assert run.data.tags["stage"] == "pretrain"
    assert run.data.tags["hardware.device"] == "cpu"
    assert "speed/mfu" not in run.data.metrics
    assert [step for step, _, _ in points(client, run)] == [1, 2, 3, 4]
    assert run.inputs.dataset_inputs[0].dataset.digest == "0" * 32 + ".dir"
    delivery.end(RunEnd("FINISHED", 1_700_000_100.0, {"dvc.out.model": "x"}), {"log.txt": state / "journal.jsonl"})
    upload(delivery, client)
    run = only_run(client)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1_700_000_100_000)
    assert run.data.tags["dvc.out.model"] == "x"
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"log.txt", "samples", "samples.json"}
    assert delivery.is_done


def test_a_point_keeps_the_journals_time(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    upload(Delivery(state, store), client)
    recorded = [r for r in Journal(state / "journal.jsonl").records() if r.kind == Kind.STEP]
    assert points(client, only_run(client)) == [(r.step, r.values["train_loss"], int(r.time * 1000)) for r in recorded]


def test_a_run_has_the_hardware_that_it_went_on_with(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    journal = Journal(state / "journal.jsonl")
    journal.append(Kind.HARDWARE, 0, device="cuda")
    upload(Delivery(state, store), client)
    assert only_run(client).data.tags["hardware.device"] == "cuda"
    journal.append(Kind.HARDWARE, 0, device="mps")
    upload(Delivery(state, store), client)
    assert only_run(client).data.tags["hardware.device"] == "mps"


def test_what_was_acknowledged_is_not_sent_again(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    upload(Delivery(state, store), client)
    record_steps(state, 5, 6)
    upload(Delivery(state, store), client)
    upload(Delivery(state, store), client)
    assert [step for step, _, _ in points(client, only_run(client))] == [1, 2, 3, 4, 5, 6]


def test_a_kill_before_the_acknowledgement_was_noted_repeats_no_point_and_no_run(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    upload(Delivery(state, store), client)
    before = points(client, only_run(client))
    (state / "delivery.json").unlink()
    upload(Delivery(state, store), client)
    assert points(client, only_run(client)) == before


def test_a_creation_that_mlflows_client_repeats_leaves_one_run(
    state: Path, store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    create = client.create_run
    monkeypatch.setattr(client, "create_run", lambda *values: [create(*values) for _ in range(3)][-1])
    delivery = Delivery(state, store)
    upload(delivery, client)
    assert only_run(client).info.run_id == delivery.run_id


def test_the_sample_table_is_one_that_mlflow_loads(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    import mlflow

    upload(Delivery(state, store), client)
    record_steps(state, 5, 5)
    upload(Delivery(state, store), client)
    mlflow.set_experiment("smollm")
    table = mlflow.load_table("samples.json", run_ids=[only_run(client).info.run_id])
    assert table.to_dict("list") == {
        "sample": ["step 4: a", "step 4: b", "step 5: a", "step 5: b"],
        "step": [4, 4, 5, 5],
        "prompt": ["a", "b", "a", "b"],
        "text": ["\tone", "two\n", "\tone", "two\n"],
    }


def test_a_child_lies_under_a_parent_that_the_store_knows(
    state: Path, store: MlflowStore, client: "MlflowClient", tmp_path: Path
) -> None:
    upload(Delivery(state, store), client)
    parent = only_run(client).info.run_id
    for name, asked, tag in (
        ("known", parent, "mlflow.parentRunId"),
        ("unknown", "f" * 32, "smollm.parent_in_another_store"),
    ):
        child = tmp_path / name
        shutil.copytree(state, child)
        (child / "delivery.json").unlink()
        values = {**vars(DESCRIPTION), "delivery_id": name, "datasets": [], "parent_run_id": asked, "run_name": name}
        write_json(child / "description.json", values)
        delivery = Delivery(child, store)
        upload(delivery, client)
        assert client.get_run(str(delivery.run_id)).data.tags[tag] == asked


def test_a_continued_run_is_running_again_and_then_finished(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    first = Delivery(state, store)
    first.end(RunEnd("KILLED", 1_700_000_100.0, {"error": "stopped"}), {})
    upload(first, client)
    assert only_run(client).info.status == "KILLED"
    assert only_run(client).data.tags["error"] == "stopped"
    record_steps(state, 5, 5)
    again = Delivery(state, store)
    again.reopen()
    upload(again, client)
    assert only_run(client).info.status == "RUNNING"
    again.end(RunEnd("FINISHED", 1_700_000_300.0), {})
    upload(again, client)
    assert only_run(client).info.status == "FINISHED"
    assert "error" not in only_run(client).data.tags
    assert [step for step, _, _ in points(client, only_run(client))] == [1, 2, 3, 4, 5]


def test_a_finished_run_has_one_version_in_the_registry(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    version = ModelVersion(
        "smollm", "| bits per byte | 1.2 |", {"md5": "0" * 32, "metrics.bits_per_byte": "1.2"}, "model"
    )
    (state / "pointer.json").write_text("{}")
    delivery = Delivery(state, store)
    delivery.end(RunEnd("FINISHED", 1_700_000_100.0, {}, version), {"model/pointer.json": state / "pointer.json"})
    upload(delivery, client)
    # as if killed before the end was noted
    (state / "delivery.json").write_text((state / "delivery.json").read_text().replace('"done": true', '"done": false'))
    upload(Delivery(state, store), client)
    (found,) = client.search_model_versions("name = 'smollm'")
    run = only_run(client)
    assert (found.run_id, found.source) == (run.info.run_id, f"runs:/{run.info.run_id}/model")
    assert found.tags == version.tags
    assert found.description == version.description
    assert [item.path for item in client.list_artifacts(run.info.run_id, "model")] == ["model/pointer.json"]


def test_a_store_that_was_emptied_gets_the_whole_run_again(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    upload(Delivery(state, store), client)
    lost = only_run(client).info.run_id
    with closing(sqlite3.connect(empty_store())) as empty, closing(sqlite3.connect(store.root / "mlflow.db")) as there:
        empty.backup(there)
    record_steps(state, 5, 6)
    delivery = Delivery(state, store)
    upload(delivery, client)
    run = only_run(client)
    assert run.info.run_id == delivery.run_id != lost
    assert run.data.params == DESCRIPTION.params
    assert [step for step, _, _ in points(client, run)] == [1, 2, 3, 4, 5, 6]


def test_after_its_deadline_a_store_is_asked_no_more(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    deadline = Deadline()
    delivery = Delivery(state, store, deadline)
    deadline.limit(-1)
    deadline.limit(60)  # no later one moves it
    with deadline.waiting(), pytest.raises(TimeoutError, match="no answer in time"):
        upload(delivery, client)
    assert delivery.state["offset"] == 0
    upload(Delivery(state, store), client)
    assert [step for step, _, _ in points(client, only_run(client))] == [1, 2, 3, 4]


def test_another_store_gets_the_whole_run(
    state: Path, store: MlflowStore, client: "MlflowClient", tmp_path: Path
) -> None:
    upload(Delivery(state, store), client)
    root = tmp_path / "other"
    root.mkdir()
    shutil.copyfile(empty_store(), root / "mlflow.db")
    other = MlflowStore(f"sqlite:///{root}/mlflow.db", root)
    upload(Delivery(state, other), other.client())
    assert [step for step, _, _ in points(other.client(), only_run(other.client()))] == [1, 2, 3, 4]


def test_a_parent_that_had_no_id_yet_is_found_by_its_delivery_id(
    state: Path, store: MlflowStore, client: "MlflowClient", tmp_path: Path
) -> None:
    upload(Delivery(state, store), client)
    parent = only_run(client).info.run_id
    child = tmp_path / "child"
    child.mkdir()
    values = {
        **vars(DESCRIPTION),
        "delivery_id": "child",
        "datasets": [],
        "parent_delivery_id": DESCRIPTION.delivery_id,
    }
    write_json(child / "description.json", values)
    delivery = Delivery(child, store)
    upload(delivery, client)
    assert client.get_run(str(delivery.run_id)).data.tags["mlflow.parentRunId"] == parent


def test_a_parent_that_arrives_after_its_child_takes_it(
    state: Path, store: MlflowStore, client: "MlflowClient", tmp_path: Path
) -> None:
    child = Delivery(tmp_path / "child", store)
    child.directory.mkdir()
    description = {**vars(DESCRIPTION), "delivery_id": "child", "datasets": []}
    write_json(child.directory / "description.json", description | {"parent_delivery_id": DESCRIPTION.delivery_id})
    upload(child, client)
    assert "mlflow.parentRunId" not in client.get_run(str(child.run_id)).data.tags
    parent = Delivery(state, store)
    upload(parent, client)
    assert client.get_run(str(child.run_id)).data.tags["mlflow.parentRunId"] == parent.run_id
    assert "mlflow.parentRunId" not in client.get_run(str(parent.run_id)).data.tags
