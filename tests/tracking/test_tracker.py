"""The tracker's thread beside a stage: what it says, and that no stage waits for it."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.deliveries import DESCRIPTION, SETTINGS, DeadClient, only_run, points

from smollm.state.files import write_json
from smollm.tracking import outbox
from smollm.tracking.delivery import Delivery
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.run_record import RunEnd
from smollm.tracking.stop_tag import StopTag
from smollm.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


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
    assert "continuing without it" in said[0]
    assert "`make sync`" in said[1]
    shutil.rmtree(state)
    assert outbox.send(client, store, said.append) == 0
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert [step for step, _, _ in points(client, run)] == [1, 2, 3, 4]
    assert not outbox.waiting(store)


def test_the_warning_tells_a_refusal_from_an_outage(state: Path, store: MlflowStore, client: "MlflowClient") -> None:
    client.delete_experiment(store.experiment_id(client, "smollm"))
    said: list[str] = []
    tracker = Tracker(state, store, SETTINGS, said.append)
    tracker.start(DESCRIPTION)
    tracker.flush()
    (line,) = said
    assert "refuses; continuing without it. MlflowException: The experiment 1 must be in the 'active' state" in line


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
        f"MLflow ({store.shown}) does not answer; continuing without it. "
        "TimeoutError: no answer within tracking.finish_seconds (0.5)",
        f"MLflow ({store.shown}) is missing part of this run; `make sync` sends it later",
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
    assert "cannot be put into the outbox: another process is sending abc-1700000000000" in said[-1]
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
        f"MLflow ({store.shown}) is missing part of this run, which cannot be put into the outbox: "
        f"[Errno 28] No space left on device: '{draft}/artifacts/log.txt'"
    )
    assert not draft.exists()


def test_the_tag_stop_asks_the_stage_to_stop_and_is_then_gone(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    asked = threading.Event()
    tracker = Tracker(state, store, SETTINGS, pytest.fail, asked.set)
    tracker.start(DESCRIPTION)
    client.set_tag(run_once_created(client).info.run_id, "stop", "true")
    assert asked.wait(60)
    tracker.end(RunEnd("KILLED", 1_700_000_100.0), {})
    run = only_run(client)
    assert run.info.status == "KILLED"
    assert "stop" not in run.data.tags


def run_once_created(client: "MlflowClient") -> "Run":
    deadline = time.monotonic() + 60
    while not (experiment := client.get_experiment_by_name("smollm")) or not client.search_runs(
        [experiment.experiment_id]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return only_run(client)


def test_a_tag_that_an_ended_run_has_does_not_stop_its_continuation(
    state: Path, store: MlflowStore, client: "MlflowClient"
) -> None:
    stopped = Tracker(state, store, SETTINGS, pytest.fail)
    stopped.start(DESCRIPTION)
    stopped.end(RunEnd("KILLED", 1_700_000_100.0), {})
    client.set_tag(only_run(client).info.run_id, "stop", "true")  # or its removal failed
    asked = threading.Event()
    again = Tracker(state, store, SETTINGS, pytest.fail, asked.set)
    again.start(DESCRIPTION)
    deadline = time.monotonic() + 60
    while "stop" in only_run(client).data.tags:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again.end(RunEnd("FINISHED", 1_700_000_200.0), {})
    assert not asked.is_set()
    assert only_run(client).info.status == "FINISHED"


def test_the_tag_is_looked_for_once_in_a_few_sends_and_an_outage_stops_nothing() -> None:
    asked: list[str] = []
    tag, calls = StopTag(lambda: asked.append("stop")), 0
    for _ in range(30):
        try:
            tag.check(DeadClient(), "run")  # type: ignore[arg-type]
        except ConnectionError:
            calls += 1
    assert calls == 10
    assert asked == []


@pytest.mark.parametrize(("value", "is_asked"), [("true", True), (" True ", True), ("false", False), ("", False)])
def test_only_the_value_true_stops(client: "MlflowClient", store: MlflowStore, value: str, is_asked: bool) -> None:
    run_id = client.create_run(store.experiment_id(client, "smollm"), tags={"stop": value}).info.run_id
    asked = threading.Event()
    tag = StopTag(asked.set)
    for _ in range(3):
        tag.check(client, run_id)
    assert asked.is_set() == is_asked
