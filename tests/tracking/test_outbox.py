"""Runs that wait for MLflow after their stage has ended."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.clone import empty_store
from support.deliveries import DESCRIPTION, SETTINGS, DeadClient, only_run, points, record_steps

from smollm.state.files import write_json
from smollm.tracking import outbox
from smollm.tracking.delivery import Delivery
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.run_record import ModelVersion, RunEnd
from smollm.tracking.tracker import Tracker
from smollm.tracking.upload import upload

if TYPE_CHECKING:
    from mlflow import MlflowClient


def test_the_outbox_keeps_what_cannot_be_sent(state: Path, store: MlflowStore) -> None:
    outbox.add(Delivery(state, store))
    said: list[str] = []
    assert outbox.send(DeadClient(), store, said.append) == 1  # type: ignore[arg-type]
    assert len(outbox.waiting(store)) == 1
    assert "nobody there" in said[0]


def test_an_abandoned_run_is_closed_as_killed(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    upload(Delivery(state, store), client)
    record_steps(state, 5, 5)
    outbox.abandon(state, store, 1_700_000_200.0)
    assert outbox.send(client, store, lambda line: None) == 0
    run = only_run(client)
    assert (run.info.status, run.info.end_time) == ("KILLED", 1_700_000_200_000)
    assert [step for step, _, _ in points(client, run)] == [1, 2, 3, 4, 5]


def test_a_finished_run_is_left_alone_when_its_state_is_removed(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    delivery = Delivery(state, store)
    delivery.end(RunEnd("FINISHED", 1_700_000_100.0), {})
    upload(delivery, client)
    outbox.abandon(state, store, 1_700_000_200.0)
    assert not outbox.waiting(store)
    assert only_run(client).info.status == "FINISHED"


@pytest.fixture
def other_store(store: MlflowStore, tmp_path: Path) -> MlflowStore:
    """Another store that the same repository is told to use."""
    shutil.copyfile(empty_store(), tmp_path / "other.db")
    return MlflowStore(f"sqlite:///{tmp_path}/other.db", store.root)


def test_a_run_that_finished_in_another_store_is_not_copied_to_this_one(
    state: Path, store: MlflowStore, client: "MlflowClient", other_store: MlflowStore
) -> None:
    delivery = Delivery(state, store)
    delivery.end(RunEnd("FINISHED", 1_700_000_100.0), {})
    upload(delivery, client)
    outbox.abandon(state, other_store, 1_700_000_200.0)
    assert not outbox.waiting(other_store)


@pytest.mark.parametrize("is_known", [True, False], ids=["known there", "not yet"])
def test_a_run_that_began_for_another_store_is_closed_there(
    state: Path, store: MlflowStore, client: "MlflowClient", other_store: MlflowStore, is_known: bool
) -> None:
    delivery = Delivery(state, store)
    delivery.begin(DESCRIPTION)
    if is_known:
        upload(delivery, client)
    outbox.abandon(state, other_store, 1_700_000_200.0)
    said: list[str] = []
    assert outbox.send(other_store.client(), other_store, said.append) == 1
    assert said == [f"outbox: abc-1700000000000 is for {store.shown}; set MLFLOW_TRACKING_URI to send it"]
    assert outbox.send(store.client(), store, pytest.fail) == 0
    assert only_run(client).info.status == "KILLED"


def ended_with_a_version(state: Path, store: MlflowStore, name: str) -> Delivery:
    (state / "pointer.json").write_text("{}")
    delivery = Delivery(state, store)
    version = ModelVersion(name, "", {}, "model")
    delivery.end(RunEnd("FINISHED", 1_700_000_100.0, {}, version), {"model/pointer.json": state / "pointer.json"})
    return delivery


def test_a_registry_that_refuses_leaves_a_finished_run_and_one_line(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    outbox.add(ended_with_a_version(state, store, "team/smollm"))
    said: list[str] = []
    assert outbox.send(client, store, said.append) == 0
    assert only_run(client).info.status == "FINISHED"
    assert outbox.waiting(store) == []
    (line,) = said
    assert "dropped: the run is there, but no version of the model 'team/smollm': MlflowException: Invalid" in line


def test_a_registry_that_does_not_answer_gets_the_version_later(
    state: Path, store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.add(ended_with_a_version(state, store, "smollm"))
    said: list[str] = []
    with monkeypatch.context() as dead:
        dead.setattr(client, "create_registered_model", lambda name: DeadClient().create_registered_model(name))
        assert outbox.send(client, store, said.append) == 1
    assert only_run(client).info.status == "FINISHED"
    assert outbox.send(client, store, pytest.fail) == 0
    assert len(client.search_model_versions("name = 'smollm'")) == 1


def test_a_run_that_its_user_deleted_is_dropped_with_one_line(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    upload(Delivery(state, store), client)
    client.delete_run(only_run(client).info.run_id)
    record_steps(state, 5, 6)
    outbox.add(Delivery(state, store))
    said: list[str] = []
    assert outbox.send(client, store, said.append) == 0
    assert said == ["outbox: abc-1700000000000 dropped: the run was deleted there; nothing more of it is sent"]
    assert outbox.waiting(store) == []
    said.clear()
    tracker = Tracker(state, store, SETTINGS, said.append)
    tracker.start(DESCRIPTION)
    tracker.end(RunEnd("FINISHED", 1_700_000_100.0), {})
    assert said == [f"MLflow ({store.shown}): the run was deleted there; nothing more of it is sent"]


def test_a_run_that_waits_already_is_not_closed_again(state: Path, store: MlflowStore) -> None:
    delivery = Delivery(state, store)
    delivery.end(RunEnd("FINISHED", 1_700_000_100.0), {})
    outbox.add(delivery)
    (waiting,) = outbox.waiting(store)
    shutil.rmtree(waiting)  # sent by another process
    outbox.abandon(state, store, 0.0)
    assert outbox.waiting(store) == []


def test_the_oldest_run_is_sent_first(state: Path, store: MlflowStore) -> None:
    for delivery_id in ("aaa-1700000000300", "bbb-1700000000100", "ccc-1700000000200"):
        text = (state / "description.json").read_text()
        other = state.parent / delivery_id
        shutil.copytree(state, other)
        (other / "description.json").write_text(text.replace(DESCRIPTION.delivery_id, delivery_id))
        outbox.add(Delivery(other, store))
    assert [path.name[:3] for path in outbox.waiting(store)] == ["bbb", "ccc", "aaa"]


def test_another_password_is_no_other_store(state: Path, store: MlflowStore) -> None:
    outbox.add(Delivery(state, MlflowStore("http://me:old@server.test", store.root)))
    said: list[str] = []
    outbox.send(DeadClient(), MlflowStore("http://me:new@server.test", store.root), said.append)  # type: ignore[arg-type]
    assert said == ["outbox: abc-1700000000000 not sent, ConnectionError: nobody there"]


def test_folders_that_are_no_deliveries_are_left_alone(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    outbox.add(Delivery(state, store))
    (waiting,) = outbox.waiting(store)
    shutil.copytree(waiting, waiting.with_name("my copy"))
    waiting.with_name("empty-1").mkdir()
    assert outbox.send(client, store, pytest.fail) == 0
    assert not outbox.waiting(store)
    assert {path.name for path in waiting.parent.iterdir()} == {"my copy", "empty-1"}


def test_two_runs_of_the_same_inputs_wait_side_by_side(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    for delivery_id in ("abc-1", "abc-2"):
        values = {**vars(DESCRIPTION), "datasets": [], "delivery_id": delivery_id, "run_name": delivery_id}
        write_json(state / "description.json", values)
        outbox.add(Delivery(state, store))
    assert outbox.send(client, store, pytest.fail) == 0
    runs = client.search_runs([client.get_experiment_by_name("smollm").experiment_id])
    assert {run.info.run_name for run in runs} == {"abc-1", "abc-2"}


def test_a_run_for_another_store_waits_for_it(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    server = MlflowStore("http://someone:secret@server.test", store.root)
    outbox.add(Delivery(state, server))
    said: list[str] = []
    assert outbox.send(client, store, said.append) == 1
    assert len(outbox.waiting(store)) == 1
    assert said == ["outbox: abc-1700000000000 is for http://server.test; set MLFLOW_TRACKING_URI to send it"]
