"""Delivery to a real MLflow store: whole, once, late, and without a password in sight."""

import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.clone import empty_store

from smollm.config.tracking import TrackingConfig
from smollm.state.files import write_json
from smollm.state.journal import Journal, Record
from smollm.tracking import outbox
from smollm.tracking.deadline import Deadline
from smollm.tracking.delivery import Delivery
from smollm.tracking.metric_names import metrics
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.run_record import Dataset, ModelVersion, RunDescription, RunEnd
from smollm.tracking.tracker import Tracker
from smollm.tracking.upload import upload

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DESCRIPTION = RunDescription(
    delivery_id="abc-1700000000000",
    experiment="smollm",
    run_name="pretrain-abc",
    started=1_700_000_000.0,
    user="someone",
    params={f"section.name{n}": str(n) for n in range(150)},
    tags={"stage": "pretrain"},
    datasets=[Dataset("pretrain/train", "0" * 32 + ".dir", "training", "data/tokens/pretrain", {"tokens": 3})],
)

SETTINGS = TrackingConfig(
    experiment="smollm",
    send_every_seconds=0.01,
    system_metrics_every_seconds=10.0,
    finish_seconds=60.0,
    registered_model=None,
    store_weights=False,
)


@pytest.fixture
def store(tmp_path: Path) -> MlflowStore:
    root = tmp_path / "mlruns"
    root.mkdir()
    shutil.copyfile(empty_store(), root / "mlflow.db")
    return MlflowStore(f"sqlite:///{root}/mlflow.db", root)


@pytest.fixture
def client(store: MlflowStore) -> "MlflowClient":
    return store.client()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A stage's live state, with something in its journal."""
    directory = tmp_path / "state"
    directory.mkdir()
    write_json(directory / "description.json", {**vars(DESCRIPTION), "datasets": [vars(DESCRIPTION.datasets[0])]})
    note(directory, 1, 4)
    return directory


def note(directory: Path, first: int, last: int) -> None:
    journal = Journal(directory / "journal.jsonl")
    for step in range(first, last + 1):
        journal.append("step", step, train_loss=10.0 / step, gradient_norm=1.0, learning_rate=0.1)
        journal.append("speed", step, tokens_per_second=5.0, step_ms=1.0, mfu=None, goodput=0.5, peak_memory_gib=1.0)
    journal.append("sample", last, prompts=["a", "b"], texts=["\tone", "two\n"])
    journal.append("hardware", 0, device="cpu")
    journal.close()


def only_run(client: "MlflowClient") -> "Run":
    (run,) = client.search_runs([client.get_experiment_by_name("smollm").experiment_id])
    return run


def points(client: "MlflowClient", run: "Run") -> list[tuple[int, float, int]]:
    return [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run.info.run_id, "train/loss")]


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
    recorded = [r for r in Journal(state / "journal.jsonl").records() if r.kind == "step"]
    assert points(client, only_run(client)) == [(r.step, r.values["train_loss"], int(r.time * 1000)) for r in recorded]


def test_a_number_that_is_not_finite_is_not_sent() -> None:
    record = Record("step", 1, 0.0, {"train_loss": 2.0, "gradient_norm": float("inf"), "learning_rate": float("nan")})
    assert list(metrics(record)) == [("train/loss", 2.0)]


def test_the_steps_that_fp16_skips_are_counted() -> None:
    record = Record("skip", 7, 0.0, {"loss_scale": 65536.0, "total": 3})
    assert list(metrics(record)) == [("train/skipped_steps", 3.0)]


def test_a_run_has_the_hardware_that_it_went_on_with(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    journal = Journal(state / "journal.jsonl")
    journal.append("hardware", 0, device="cuda")
    upload(Delivery(state, store), client)
    assert only_run(client).data.tags["hardware.device"] == "cuda"
    journal.append("hardware", 0, device="mps")
    upload(Delivery(state, store), client)
    assert only_run(client).data.tags["hardware.device"] == "mps"


def test_what_was_acknowledged_is_not_sent_again(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    upload(Delivery(state, store), client)
    note(state, 5, 6)
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


def test_the_system_is_measured_again_after_a_lost_answer(
    state: Path, store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    lost = threading.Event()

    def get_run(self: "MlflowClient", run_id: str) -> "Run":
        if threading.current_thread().name == "SystemMetricsMonitor" and not lost.is_set():
            lost.set()
            raise ConnectionError("nobody there")
        return real(self, run_id)

    real = mlflow.MlflowClient.get_run
    monkeypatch.setattr(mlflow.MlflowClient, "get_run", get_run)
    tracker = Tracker(state, store, replace(SETTINGS, system_metrics_every_seconds=0.1), pytest.fail)
    tracker.start(DESCRIPTION)
    deadline = time.monotonic() + 60
    while not (lost.is_set() and any(name.startswith("system/") for name in only_run(client).data.metrics)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tracker.flush()


def test_the_sample_table_is_one_that_mlflow_loads(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    import mlflow

    upload(Delivery(state, store), client)
    note(state, 5, 5)
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


class DeadClient:
    """Every call fails."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("nobody there")


def test_training_hears_one_warning_of_a_dead_store_and_make_sync_sends_all_later(
    state: Path, store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tracker = Tracker(state, store, SETTINGS, said.append)
    with monkeypatch.context() as dead:
        dead.setattr(MlflowStore, "client", lambda self: DeadClient())
        tracker.start(DESCRIPTION)
        tracker.flush()
        tracker.end(RunEnd("FINISHED", 1_700_000_100.0), {"log.txt": state / "journal.jsonl"})
    assert len(said) == 2
    assert said[0].startswith("MLflow (sqlite:")
    assert "training continues" in said[0]
    assert "`make sync`" in said[1]
    shutil.rmtree(state)
    assert outbox.send(client, store, said.append) == 0
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert [step for step, _, _ in points(client, run)] == [1, 2, 3, 4]
    assert not outbox.waiting(store)


def test_the_outbox_keeps_what_cannot_be_sent(state: Path, store: MlflowStore) -> None:
    outbox.add(Delivery(state, store))
    said: list[str] = []
    assert outbox.send(DeadClient(), store, said.append) == 1  # type: ignore[arg-type]
    assert len(outbox.waiting(store)) == 1
    assert "nobody there" in said[0]


def test_an_abandoned_run_is_closed_as_killed(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    upload(Delivery(state, store), client)
    note(state, 5, 5)
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


def test_a_continued_run_is_running_again_and_then_finished(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    first = Delivery(state, store)
    first.end(RunEnd("KILLED", 1_700_000_100.0, {"error": "stopped"}), {})
    upload(first, client)
    assert only_run(client).info.status == "KILLED"
    assert only_run(client).data.tags["error"] == "stopped"
    note(state, 5, 5)
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


def test_a_store_that_was_emptied_gets_the_whole_run_again(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    upload(Delivery(state, store), client)
    lost = only_run(client).info.run_id
    with closing(sqlite3.connect(empty_store())) as empty, closing(sqlite3.connect(store.root / "mlflow.db")) as there:
        empty.backup(there)
    note(state, 5, 6)
    delivery = Delivery(state, store)
    upload(delivery, client)
    run = only_run(client)
    assert run.info.run_id == delivery.run_id != lost
    assert run.data.params == DESCRIPTION.params
    assert [step for step, _, _ in points(client, run)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_its_user_deleted_is_dropped_with_one_line(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    upload(Delivery(state, store), client)
    client.delete_run(only_run(client).info.run_id)
    note(state, 5, 6)
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


def test_the_warning_tells_a_refusal_from_an_outage(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    client.delete_experiment(store.experiment_id(client, "smollm"))
    said: list[str] = []
    tracker = Tracker(state, store, SETTINGS, said.append)
    tracker.start(DESCRIPTION)
    tracker.flush()
    (line,) = said
    assert "refuses; training continues. MlflowException: The experiment 1 must be in the 'active' state" in line


def test_after_its_deadline_a_store_is_asked_no_more(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    deadline = Deadline()
    delivery = Delivery(state, store, deadline)
    deadline.limit(-1)
    deadline.limit(60)  # no later one moves it
    with deadline.waiting(), pytest.raises(TimeoutError, match="too slowly"):
        upload(delivery, client)
    assert delivery.state["offset"] == 0
    upload(Delivery(state, store), client)
    assert [step for step, _, _ in points(client, only_run(client))] == [1, 2, 3, 4]


class BlockedClient:
    """No call returns until it is let go, like one inside SQLite, or of a database whose machine has gone."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        self.let_go.wait()
        raise ConnectionError("nobody there")


def test_a_call_that_never_returns_holds_up_no_stage(
    state: Path, store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    blocked, before = BlockedClient(), set(threading.enumerate())
    with monkeypatch.context() as patched:
        patched.setattr(MlflowStore, "client", lambda self: blocked)
        tracker = Tracker(state, store, replace(SETTINGS, finish_seconds=0.5), said.append)
        began = time.monotonic()
        tracker.start(DESCRIPTION)
        tracker.flush()
        tracker.end(RunEnd("FINISHED", 1_700_000_100.0), {})
        assert time.monotonic() - began < 5
        blocked.let_go.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
            assert not thread.is_alive()
    assert said == [
        f"MLflow ({store.shown}) does not answer; training continues. "
        "TimeoutError: no answer within tracking.finish_seconds (0.5)",
        f"MLflow ({store.shown}) lacks part of this run; `make sync` sends it later",
    ]
    assert outbox.send(client, store, pytest.fail) == 0
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert [step for step, _, _ in points(client, run)] == [1, 2, 3, 4]


def test_publishing_takes_nothing_from_the_time_that_mlflow_has(
    state: Path, store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tracker = Tracker(state, store, SETTINGS, said.append)
    tracker.start(DESCRIPTION)
    tracker.flush()
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
    tracker.end(RunEnd("FINISHED", 1_700_000_100.0), {})
    assert only_run(client).info.status == "FINISHED"
    assert said == []


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


def test_a_page_is_named_for_a_server_and_without_its_password() -> None:
    server = MlflowStore("https://me:word@host:5000", Path("x"))
    assert server.page("1", "abc") == "https://host:5000/#/experiments/1/runs/abc"
    assert MlflowStore("sqlite:///x.db", Path("x")).page("1", "abc") is None


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


def test_a_password_is_never_shown() -> None:
    store = MlflowStore("https://someone:secret@server.test:8443/mlflow?x=1", Path("/mlruns"))
    assert store.shown == "https://server.test:8443/mlflow?x=1"


def test_another_password_is_no_other_store(state: Path, store: MlflowStore) -> None:
    outbox.add(Delivery(state, MlflowStore("http://me:old@server.test", store.root)))
    said: list[str] = []
    outbox.send(DeadClient(), MlflowStore("http://me:new@server.test", store.root), said.append)  # type: ignore[arg-type]
    assert said == ["outbox: abc-1700000000000 not sent, ConnectionError: nobody there"]


def test_the_users_store_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server.test")
    assert MlflowStore.of(Path("/repository")).uri == "http://server.test"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert MlflowStore.of(Path("/repository")).uri == "sqlite:////repository/mlruns/mlflow.db"


def test_artifacts_lie_below_mlruns(store: MlflowStore, client: "MlflowClient") -> None:
    experiment = client.get_experiment(store.experiment_id(client, "mine"))
    assert experiment.artifact_location == (store.root / "artifacts" / "mine").as_uri()
    assert store.experiment_id(client, "mine") == experiment.experiment_id


def test_an_experiment_that_another_process_has_just_made_is_used(
    store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.experiment_id(client, "mine")
    real, answers = client.get_experiment_by_name, iter([lambda name: None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers, real)(name))
    assert store.experiment_id(client, "mine") == made


def test_a_run_that_goes_on_is_not_ended_by_its_older_copy_in_the_outbox(
    state: Path, store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dead:
        dead.setattr(MlflowStore, "client", lambda self: DeadClient())
        stopped = Tracker(state, store, SETTINGS, lambda line: None)
        stopped.start(DESCRIPTION)
        stopped.end(RunEnd("KILLED", 1_700_000_100.0, {"error": "stopped"}), {})
    assert len(outbox.waiting(store)) == 1
    again = Tracker(state, store, SETTINGS, pytest.fail)
    again.start(DESCRIPTION)
    again.end(RunEnd("FINISHED", 1_700_000_200.0), {})
    assert outbox.send(client, store, pytest.fail) == 0
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags


class StuckClient:
    """Every call fails when it is let go, and not before."""

    def __init__(self) -> None:
        self.is_asked, self.let_go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        self.is_asked.set()
        self.let_go.wait(60)
        raise ConnectionError("nobody there")


@contextmanager
def sending(store: MlflowStore) -> Iterator[None]:
    """While another process is stuck at sending the first delivery of the outbox."""
    client = StuckClient()
    thread = threading.Thread(target=outbox.send, args=(client, store, lambda line: None))
    thread.start()
    client.is_asked.wait(60)
    try:
        yield
    finally:
        client.let_go.set()
        thread.join()


def at_once(action: Callable[[], None]) -> bool:
    """Whether `action` ends without what it may wait for."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


def test_no_stage_waits_for_a_process_that_sends_the_outbox(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    older, given_up = state.parent / "older", state.parent / "given up"
    for directory, delivery_id in ((older, "older-1"), (given_up, "abc-2")):
        shutil.copytree(state, directory)
        write_json(directory / "description.json", {**vars(DESCRIPTION), "datasets": [], "delivery_id": delivery_id})
    outbox.add(Delivery(older, store))
    tracker = Tracker(state, store, replace(SETTINGS, finish_seconds=0.1), lambda line: None)
    with sending(store):
        assert at_once(lambda: tracker.start(DESCRIPTION))
        assert at_once(lambda: outbox.abandon(given_up, store, 1_700_000_200.0))
        assert at_once(lambda: tracker.end(RunEnd("FINISHED", 1_700_000_100.0), {}))
    assert outbox.send(client, store, pytest.fail) == 0


def test_a_stage_waits_a_moment_for_a_process_that_sends_its_own_run(
    state: Path, store: MlflowStore, client: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_MOMENT_SECONDS", 0.1)
    outbox.add(Delivery(state, store))
    said: list[str] = []
    tracker = Tracker(state, store, replace(SETTINGS, finish_seconds=0.1), said.append)
    with sending(store):
        assert at_once(lambda: tracker.start(DESCRIPTION))
        assert at_once(lambda: tracker.end(RunEnd("FINISHED", 1_700_000_100.0), {}))
    assert "the outbox does not take it: another process is sending abc-1700000000000" in said[-1]
    outbox.abandon(state, store, 1_700_000_200.0)  # as the next stage does
    assert outbox.send(client, store, pytest.fail) == 0
    assert only_run(client).info.status == "FINISHED"


def test_an_outbox_that_cannot_be_used_stops_no_stage(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    (store.root / "outbox").touch()
    said: list[str] = []
    tracker = Tracker(state, store, SETTINGS, said.append)
    tracker.start(DESCRIPTION)
    tracker.end(RunEnd("FINISHED", 1_700_000_100.0), {})
    assert "NotADirectoryError" in said[0]


def test_a_disk_without_room_for_the_outbox_is_told_in_plain_words(
    state: Path, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    log = state / "log.txt"
    log.touch()
    said: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(MlflowStore, "client", lambda self: DeadClient())
        tracker = Tracker(state, store, SETTINGS, said.append)
        tracker.start(DESCRIPTION)
        tracker.flush()
        patched.setattr(outbox, "link_or_copy", full)
        tracker.end(RunEnd("FINISHED", 1_700_000_100.0), {"log.txt": log})
    draft = store.root / "outbox" / f".{DESCRIPTION.delivery_id}.tmp"
    assert said[-1] == (
        f"MLflow ({store.shown}) lacks part of this run, and the outbox does not take it: "
        f"[Errno 28] No space left on device: '{draft}/artifacts/log.txt'"
    )
    assert not draft.exists()


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


def test_the_words_of_a_real_error_hold_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = MlflowStore("http://someone:secret@127.0.0.1:9", tmp_path / "mlruns")
    with pytest.raises(Exception, match="secret") as caught:
        store.client()
    assert "secret" not in store.reason(caught.value)
    assert "127.0.0.1:9" in store.reason(caught.value)
