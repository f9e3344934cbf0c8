"""The whole pipeline against MLflow servers that are dead, die, are slow, or belong to a team; real processes."""

import re
import secrets
import sqlite3
import subprocess
import time
from pathlib import Path

import mlflow
import pytest
from support.clone import Clone
from support.servers import mlflow_server, postgresql, slow_way
from support.small_disk import fill, small_disk
from support.training_runs import clone, wait_for_step

STAGES = ("tokenize", "pretrain", "finetune")

SETTINGS = {
    "tracking.finish_seconds": 10.0,
    "pretrain.sample_every_steps": 50,
    "pretrain.validate_every_steps": 20,
}
"""Less waiting; and steps enough for the fault to come among them, without most of what takes their time."""

pytestmark = pytest.mark.slow


def project_in(directory: Path, pretrain: int = 60) -> Clone:
    """A project in which nothing has run yet."""
    made = clone(directory / "project", with_tokens=False, pretrain=pretrain, finetune=8)
    made.set(SETTINGS)
    made.commit("settings")
    return made


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_has_all(uri: str, project: Clone) -> None:
    """The store has one finished run of each stage, each point once and in order, and all that belongs to it."""
    store = mlflow.MlflowClient(uri)
    found = store.search_runs([store.get_experiment_by_name("smollm").experiment_id])
    by_stage = {run.data.tags["stage"]: run for run in found}
    assert len(found) == len(by_stage) == len(STAGES)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert by_stage["finetune"].data.tags["mlflow.parentRunId"] == by_stage["pretrain"].info.run_id
    for stage in ("pretrain", "finetune"):
        run = by_stage[stage]
        for metric, table in (("train/loss", "losses.tsv"), ("validation/loss", "validation.tsv")):
            points = [(p.step, p.value) for p in store.get_metric_history(run.info.run_id, metric)]
            rows = [(int(row[0]), float(row[1])) for row in project.rows(f"reports/{stage}/{table}")]
            assert points == rows, (stage, metric)
        names = {item.path for item in store.list_artifacts(run.info.run_id)}
        assert {"samples.json", "samples", "training_log.txt", "loss.svg", "run.json", "params.yaml"} <= names
        assert f"dvc.out.checkpoints/{stage}" in run.data.tags
        assert_has_its_checkpoints(store, run, project)
    (version,) = store.search_model_versions("name = 'smollm'")
    assert version.run_id == by_stage["finetune"].info.run_id
    assert store.get_model_version_by_alias("smollm", "best").version == version.version
    assert store.get_logged_model(version.tags["logged_model"]).source_run_id == version.run_id


def assert_has_its_checkpoints(store: mlflow.MlflowClient, run: mlflow.entities.Run, project: Clone) -> None:
    """MLflow has a LoggedModel for each checkpoint that DVC keeps, with its validation."""
    stage = run.data.tags["stage"]
    metrics = project.json(f"reports/{stage}/metrics.json")
    kept = {metrics["step"]: metrics["bits_per_byte"], metrics["best_step"]: metrics["best_bits_per_byte"]}
    models = store.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    logged = {m.step: m.value for model in models for m in model.metrics if m.key == "validation/bits_per_byte"}
    assert logged == kept
    assert {output.step for output in run.outputs.model_outputs} == kept.keys()
    for model in models:
        assert project.json(f"{model.params['path']}/trainer_state.json")["step"] in kept


def stages_in(store: mlflow.MlflowClient, experiment: str) -> set[str]:
    """The stages that have a run in an experiment."""
    found = store.get_experiment_by_name(experiment)
    return {run.data.tags["stage"] for run in store.search_runs([found.experiment_id])} if found else set()


def test_a_server_that_is_dead_from_the_start_costs_nothing(tmp_path: Path) -> None:
    project = project_in(tmp_path)
    with mlflow_server(tmp_path / "server") as server:
        said = project.dvc("repro", MLFLOW_TRACKING_URI=server.uri).stdout
        assert said.count("does not answer; continuing without it") == len(STAGES)
        assert said.count("is missing part of this run; `make sync` sends it later") == len(STAGES)
        server.start()
        sent = project.run("make", "sync", "VENV=", MLFLOW_TRACKING_URI=server.uri).stdout
        assert "3 of 3 waiting runs sent" in sent
        assert_has_all(server.uri, project)
        assert "no waiting" in project.run("make", "sync", "VENV=", MLFLOW_TRACKING_URI=server.uri).stdout


def test_a_server_that_is_killed_and_comes_back_has_all_of_it(tmp_path: Path) -> None:
    project = project_in(tmp_path, pretrain=400)
    with mlflow_server(tmp_path / "server") as server:
        server.start()
        with project.start(MLFLOW_TRACKING_URI=server.uri) as process:
            wait_for_step(project, process, 150)
            server.kill()
            said, _ = process.communicate()
        assert process.returncode == 0, said
        assert "pretrain: MLflow" in said
        server.start()
        project.run("make", "sync", "VENV=", MLFLOW_TRACKING_URI=server.uri)
        assert_has_all(server.uri, project)


def test_a_server_that_answers_after_five_seconds_is_not_waited_for(tmp_path: Path) -> None:
    project = project_in(tmp_path)
    with mlflow_server(tmp_path / "server") as server:
        server.start()
        with slow_way(server.port) as way:
            way.seconds = 5.0
            began = time.monotonic()
            said = project.dvc("repro", MLFLOW_TRACKING_URI=way.uri).stdout
            # each stage waits 10 s at its end and for answers that are under way; all of them would take minutes
            assert time.monotonic() - began < 180
            assert "is missing part of this run; `make sync` sends it later" in said
            way.seconds = 0.0
            project.run("make", "sync", "VENV=", MLFLOW_TRACKING_URI=way.uri)
        assert_has_all(server.uri, project)


def test_a_server_that_never_answers_holds_up_no_stage(tmp_path: Path) -> None:
    project = project_in(tmp_path)
    project.set({"tracking.finish_seconds": 2.0})
    with mlflow_server(tmp_path / "server") as server:
        server.start()
        with slow_way(server.port) as way:
            way.seconds = 3600.0
            variables = {"MLFLOW_TRACKING_URI": way.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "36000"}
            began = time.monotonic()
            said = project.dvc("repro", **variables).stdout
            assert time.monotonic() - began < 120
    assert said.count("does not answer; continuing without it") == len(STAGES)
    assert said.count("no answer within tracking.finish_seconds (2)") == len(STAGES)
    assert said.count("is missing part of this run; `make sync` sends it later") == len(STAGES)


def test_an_mlruns_that_cannot_be_written_is_told_once_a_stage(tmp_path: Path) -> None:
    project = project_in(tmp_path)
    with small_disk(project.directory / "mlruns", 1024):
        subprocess.run(["mount", "-o", "remount,ro", project.directory / "mlruns"], check=True)
        began = time.monotonic()
        said = project.dvc("repro").stdout
        assert time.monotonic() - began < 120
    assert said.count("does not answer; continuing without it") == len(STAGES)
    assert said.count("cannot be put into the outbox") == len(STAGES)
    assert said.count("MLflow") == 2 * len(STAGES)


def test_a_database_that_is_locked_gets_all_of_it_later(tmp_path: Path) -> None:
    project = project_in(tmp_path)
    database = project.directory / "mlruns" / "mlflow.db"
    project.repro("tokenize")
    lock = sqlite3.connect(database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    said = project.dvc("repro").stdout
    assert said.count("is missing part of this run; `make sync` sends it later") == 2
    lock.execute("ROLLBACK")
    lock.close()
    assert "2 of 2 waiting runs sent" in project.run("make", "sync", "VENV=").stdout
    assert_has_all(f"sqlite:///{database}", project)


def test_a_full_disk_under_mlruns_stops_no_training(tmp_path: Path) -> None:
    project = project_in(tmp_path, pretrain=600)
    content = (project.directory / "mlruns" / "mlflow.db").read_bytes()
    with small_disk(project.directory / "mlruns", 8192):
        (project.directory / "mlruns" / "mlflow.db").write_bytes(content)
        filler = project.directory / "mlruns" / "filler"
        with project.start() as process:
            wait_for_step(project, process, 50)
            fill(filler)
            said, _ = process.communicate()
        assert process.returncode == 0, said
        assert "cannot be put into the outbox" in said
        filler.unlink()
        project.run("make", "repro", "VENV=")
        assert_has_all(f"sqlite:///{project.directory}/mlruns/mlflow.db", project)


def test_a_team_server_on_postgresql_serves_two_repositories_and_no_secret(tmp_path: Path) -> None:
    one, other = project_in(tmp_path / "one"), project_in(tmp_path / "other", pretrain=300)
    one.set({"tracking.store_weights": True})
    other.set({"tracking.registered_model": None, "pretrain.optimizer.lr": 1e-3, "tracking.experiment": "other"})
    with postgresql(tmp_path / "postgresql") as backend, mlflow_server(tmp_path / "server", backend) as server:
        server.start()
        secret = secrets.token_hex()
        uri = server.uri.replace("http://", f"http://someone:{secret}@")
        said = one.dvc("repro", MLFLOW_TRACKING_URI=uri).stdout
        store = mlflow.MlflowClient(server.uri)
        with other.start(MLFLOW_TRACKING_URI=uri) as process:
            wait_for_step(other, process, 12)
            while "pretrain" not in stages_in(store, "other"):
                assert process.poll() is None, "ended before MLflow was told of it"
                time.sleep(0.1)
            process.kill()
            subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=False)
            said += process.communicate()[0]
        other.set({"pretrain.optimizer.lr": 2e-3})
        said += other.dvc("repro", MLFLOW_TRACKING_URI=uri).stdout
        (state,) = re.findall(r"pretrain: keeping .*`make drop STATE=(\S+)` removes it", said)
        said += other.run("make", "drop", "VENV=", f"STATE={state}", MLFLOW_TRACKING_URI=uri).stdout
        assert_has_all(server.uri, one)
        (version,) = store.search_model_versions("name = 'smollm'")
        served = content(Path(store.download_artifacts(version.run_id, "model", str(tmp_path))))
        assert served.pop("pointer.json")
        assert served == content(one.directory / "models/finetune")
        theirs = store.search_runs([store.get_experiment_by_name("other").experiment_id])
        assert not any(store.list_artifacts(run.info.run_id, "model") for run in theirs)
        statuses = [(run.data.tags["stage"], run.info.status) for run in theirs]
        assert sorted(statuses) == [
            ("finetune", "FINISHED"),
            ("pretrain", "FINISHED"),
            ("pretrain", "KILLED"),
            ("tokenize", "FINISHED"),
        ]
        values = [f"{run.data.tags} {run.data.params}" for run in theirs]
    assert secret not in said
    assert not any(secret in value for value in values)
    for project in (one, other):
        for path in project.directory.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
