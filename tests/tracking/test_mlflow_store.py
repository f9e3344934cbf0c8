"""The repository's own MLflow store: any path, a move or a copy, files of others, and what its errors say."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.clone import empty_store, environment
from support.servers import free_port
from support.structure import ROOT

from smollm.tracking.mlflow_store import MlflowStore, sqlite_uri
from smollm.tracking.mlruns_lock import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

STRANGE = "a?b#c %20 d: é;&=+@'日本"
"""A folder's name with what addresses and lists give a meaning to."""


def own_store(repository: Path) -> MlflowStore:
    (repository / "mlruns").mkdir(parents=True)
    shutil.copyfile(empty_store(), repository / "mlruns" / "mlflow.db")
    return store_of(repository)


def store_of(repository: Path) -> MlflowStore:
    """As `MlflowStore.of`, whatever store this process has used before: MLflow notes it in the environment."""
    return MlflowStore(sqlite_uri(repository / "mlruns" / "mlflow.db"), repository / "mlruns")


def write_run(store: MlflowStore, text: str) -> str:
    """A run with one artifact; its id."""
    client = store.client()
    run_id: str = client.create_run(store.experiment_id(client, "smollm")).info.run_id
    client.log_text(run_id, text, "note.txt")
    return run_id


def read_artifact(client: "MlflowClient", run_id: str) -> str:
    import mlflow

    return str(mlflow.artifacts.load_text(f"{client.get_run(run_id).info.artifact_uri}/note.txt"))


def files_of(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_store_works_below_a_folder_of_any_name(tmp_path: Path) -> None:
    store = own_store(tmp_path / STRANGE)
    run_id = write_run(store, "hello")
    assert read_artifact(store.client(), run_id) == "hello"
    assert [path.name for path in tmp_path.iterdir()] == [STRANGE]
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database:
        assert database.execute("SELECT run_uuid FROM runs").fetchall() == [(run_id,)]
    assert any(name.endswith("/artifacts/note.txt") for name in files_of(store.root / "artifacts" / "smollm"))


def test_a_moved_repository_writes_and_reads_where_it_is(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / STRANGE
    old_run = write_run(own_store(before), "old")
    subprocess.run(["mv", before, after], check=True)
    store = store_of(after)
    new_run = write_run(store, "new")
    assert not before.exists()
    assert read_artifact(store.client(), old_run) == "old"
    assert read_artifact(store.client(), new_run) == "new"


def test_a_copied_repository_leaves_the_original_alone(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    old_run = write_run(own_store(original), "old")
    subprocess.run(["cp", "-r", original, copy], check=True)
    there = files_of(original)
    store = store_of(copy)
    write_run(store, "new")
    assert files_of(original) == there
    shutil.rmtree(original / "mlruns" / "artifacts")
    assert read_artifact(store.client(), old_run) == "old"


def test_a_link_to_the_repository_is_no_move(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    run_id = write_run(own_store(real), "old")
    link.symlink_to(real)
    client = store_of(link).client()
    assert client.get_run(run_id).info.artifact_uri.startswith(real.as_uri())


def test_an_artifact_store_that_the_user_chose_stays(tmp_path: Path) -> None:
    store = own_store(tmp_path / "before")
    for name, location in (("bucket", "s3://team/mlruns/artifacts/bucket"), ("mine", (tmp_path / "mine").as_uri())):
        store.client().create_experiment(name, artifact_location=location)
    (tmp_path / "before").rename(tmp_path / "after")
    client = store_of(tmp_path / "after").client()
    assert client.get_experiment_by_name("bucket").artifact_location == "s3://team/mlruns/artifacts/bucket"
    assert client.get_experiment_by_name("mine").artifact_location == (tmp_path / "mine").as_uri()


def set_schema(store: MlflowStore, version: str) -> None:
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", [version])


def test_a_database_of_another_mlflow_is_told_with_its_remedies(tmp_path: Path) -> None:
    store = own_store(tmp_path)
    set_schema(store, "181f10493468")
    with pytest.raises(Exception, match="schema") as caught:
        store.client()
    line = store.outage(caught.value)
    assert "run 'mlflow db upgrade sqlite:///mlruns/mlflow.db' to migrate" in line
    assert line.endswith("Where a newer MLflow made the database, install that MLflow instead.")
    assert "try again" not in line


def test_a_folder_as_a_store_is_told_with_mlflows_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "runs"))
    store = MlflowStore.of(tmp_path)
    with pytest.raises(Exception, match="maintenance") as caught:
        store.client()
    line = store.outage(caught.value)
    assert "set `MLFLOW_ALLOW_FILE_STORE=true` to opt out" in line
    assert "try again" not in line


def test_a_damaged_database_is_told_at_once_and_without_sql(tmp_path: Path) -> None:
    store = own_store(tmp_path)
    (store.root / "mlflow.db").write_text("no database")
    with pytest.raises(Exception, match="not a database") as caught:
        store.client()
    assert store.reason(caught.value) == "DatabaseError: file is not a database"


def test_files_of_another_user_are_told_with_the_command_that_mends_them(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files to another user needs root")
    store = own_store(tmp_path)
    tmp_path.chmod(0o755)
    for path in (store.root, store.root / "mlflow.db"):
        path.chmod(0o755)
    program = (
        "import os; from pathlib import Path; from smollm.tracking.mlflow_store import MlflowStore; os.setuid(65534)\n"
        "store = MlflowStore.of(Path())\n"
        "try: store.client()\n"
        "except Exception as error: print(store.outage(error))\n"
    )
    variables = environment() | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout
    assert said == (
        "ERROR: MLflow (sqlite:///mlruns/mlflow.db) failed: PermissionError: [Errno 13] Permission denied: "
        "'mlruns/.lock'; make mlruns and all in it yours: sudo chown -R $(id -u) 'mlruns'\n"
    )


def test_a_lock_that_is_never_released_is_waited_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm.tracking.mlruns_lock.LOCK_SECONDS", 0.2)
    with locked(tmp_path / "lock"), pytest.raises(TimeoutError, match="held"), locked(tmp_path / "lock"):
        pass


def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()


@pytest.mark.slow
def test_mlflows_pages_open_the_artifacts_of_a_moved_repository(tmp_path: Path) -> None:
    run_id = write_run(own_store(tmp_path / "before"), "old")
    after = tmp_path / STRANGE
    subprocess.run(["mv", tmp_path / "before", after], check=True)
    port = free_port()
    command = [sys.executable, "-m", "smollm.tracking.ui", "--port", str(port), "--workers", "1"]
    variables = environment() | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, cwd=after, env=variables, start_new_session=True) as server:
        try:
            address = f"http://127.0.0.1:{port}/get-artifact?path=note.txt&run_uuid={run_id}"
            assert wait_for_text(address) == "old"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [STRANGE]


def wait_for_text(address: str) -> str:
    """What an address answers, once it does."""
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            pytest.fail(error.read().decode())
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.5)


def test_a_page_is_named_for_a_server_and_without_its_password() -> None:
    server = MlflowStore("https://me:word@host:5000", Path("x"))
    assert server.page("1", "abc") == "https://host:5000/#/experiments/1/runs/abc"
    assert MlflowStore("sqlite:///x.db", Path("x")).page("1", "abc") is None


def test_a_password_is_never_shown() -> None:
    store = MlflowStore("https://someone:secret@server.test:8443/mlflow?x=1", Path("/mlruns"))
    assert store.shown == "https://server.test:8443/mlflow?x=1"


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


def test_the_words_of_a_real_error_hold_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = MlflowStore("http://someone:secret@127.0.0.1:9", tmp_path / "mlruns")
    with pytest.raises(Exception, match="secret") as caught:
        store.client()
    assert "secret" not in store.reason(caught.value)
    assert "127.0.0.1:9" in store.reason(caught.value)
