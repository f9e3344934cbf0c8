"""DVC's experiments on the pipeline: queued, side by side, temporary, compared, applied, and found again in MLflow."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from support.clone import Clone, completed
from support.training_runs import clone, wait_for_step

pytestmark = pytest.mark.slow

RATES = {"slow": 0.001, "fast": 0.01, "faster": 0.02}


def runs_of(clone: Clone, experiment: str) -> dict[str, Any]:
    """MLflow's runs of one of DVC's experiments, by stage."""
    store = mlflow.MlflowClient(f"sqlite:///{clone.directory}/mlruns/mlflow.db")
    where = [store.get_experiment_by_name("smollm").experiment_id]
    found = store.search_runs(where, f"tags.`dvc.experiment` = '{experiment}'")
    by_stage = {run.data.tags["stage"]: run for run in found}
    assert len(by_stage) == len(found), "one run a stage"
    return by_stage


def shown(clone: Clone) -> dict[str, dict[str, Any]]:
    """What `dvc exp show` says of each experiment, by its name."""
    table = json.loads(clone.dvc("exp", "show", "--json").stdout)
    experiments = [one for baseline in table for one in baseline.get("experiments") or []]
    return {one["name"]: one["revs"][0]["data"] for one in experiments if one.get("revs")}


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with a committed result, and four queued experiments that two workers have run; one of them fails."""
    clone = completed().copy(tmp_path_factory.mktemp("experiments") / "project")
    for name, rate in RATES.items():
        clone.dvc("exp", "run", "--queue", "--name", name, "-S", f"pretrain.optimizer.lr={rate}")
    clone.dvc("exp", "run", "--queue", "--name", "wrong", "-S", "pretrain.optimizer.lr=-1")
    clone.dvc("queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 600
    while any(word in (status := clone.dvc("queue", "status").stdout) for word in ("Queued", "Running")):
        assert time.monotonic() < deadline, status
        time.sleep(2)
    return clone


def test_queued_experiments_run_and_a_wrong_one_says_why(queued: Clone) -> None:
    status = {line.split()[1]: line.split()[-1] for line in queued.dvc("queue", "status").stdout.splitlines()[1:5]}
    assert status == {**dict.fromkeys(RATES, "Success"), "wrong": "Failed"}
    assert "ERROR: params.yaml: pretrain.optimizer.lr must be" in queued.dvc("queue", "logs", "wrong").stdout
    assert queued.run("git", "status", "--porcelain").stdout == ""


def test_each_is_found_in_mlflow_by_its_name_and_leads_there(queued: Clone) -> None:
    experiments = shown(queued)
    for name, rate in RATES.items():
        runs = runs_of(queued, name)
        assert set(runs) == {"pretrain", "finetune"}, "the tokens are the baseline's"
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        assert runs["pretrain"].data.params["pretrain.optimizer.lr"] == str(rate)
        assert runs["pretrain"].info.run_name == f"pretrain test {name}"
        assert runs["finetune"].data.tags["mlflow.parentRunId"] == runs["pretrain"].info.run_id
        metrics = experiments[name]["metrics"]
        for stage, run in runs.items():
            assert metrics[f"reports/{stage}/run.json"]["data"]["mlflow_run_id"] == run.info.run_id
            loss = metrics[f"reports/{stage}/metrics.json"]["data"]["validation_loss"]
            assert loss == run.data.metrics["validation/loss"]
        assert experiments[name]["params"]["params.yaml"]["data"]["pretrain"]["optimizer"]["lr"] == rate


def test_the_differences_are_shown(queued: Clone, tmp_path: Path) -> None:
    assert "pretrain.optimizer.lr" in queued.dvc("exp", "diff", "slow", "fast").stdout
    params = json.loads(queued.dvc("params", "diff", "--json", "HEAD", "fast").stdout)
    assert params == {"params.yaml": {"pretrain.optimizer.lr": {"old": 0.003, "new": 0.01, "diff": 0.007}}}
    metrics = json.loads(queued.dvc("metrics", "diff", "--json", "slow", "fast").stdout)
    assert metrics["reports/pretrain/metrics.json"]["bits_per_byte"]["diff"] != 0
    queued.dvc("plots", "diff", "slow", "fast", "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert all(text in page for text in ("slow", "fast", "train_loss", "bits_per_byte"))
    assert all(name in queued.dvc("exp", "show", "--no-pager", "--only-changed").stdout for name in RATES)


def test_one_is_applied_and_makes_a_branch(queued: Clone) -> None:
    weights = queued.directory / "checkpoints/finetune/last/model.safetensors"
    before = weights.read_bytes()
    queued.dvc("exp", "apply", "fast")
    assert queued.repro() == [], "its results are in place"
    assert weights.read_bytes() != before
    run_id = queued.json("reports/pretrain/run.json")["mlflow_run_id"]
    assert run_id == runs_of(queued, "fast")["pretrain"].info.run_id
    queued.run("git", "checkout", "-q", "--", ".")
    queued.dvc("exp", "branch", "fast", "faster-rate")
    queued.run("git", "checkout", "-q", "faster-rate")
    queued.dvc("checkout")
    assert queued.repro() == []
    queued.run("git", "checkout", "-q", "-")
    queued.dvc("checkout")
    assert weights.read_bytes() == before


def test_what_was_not_committed_survives_an_apply(queued: Clone) -> None:
    edited = (queued.directory / "params.yaml").read_text().replace("seed: 1337", "seed: 7")
    (queued.directory / "params.yaml").write_text(edited)
    queued.dvc("exp", "apply", "fast")
    assert (queued.directory / "params.yaml").read_text() != edited
    queued.run("git", "checkout", "-q", ".")
    queued.run("git", "stash", "apply", "refs/exps/apply/stash")
    assert (queued.directory / "params.yaml").read_text() == edited
    queued.run("git", "checkout", "-q", ".")
    queued.dvc("checkout")


def test_a_killed_experiment_goes_on_under_another_name(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", with_tokens=False, pretrain=600, finetune=8)
    project.set({f"pretrain.{what}_every_steps": 100 for what in ("sample", "validate")})
    project.commit("sample and validate less")
    edit = ["-S", "pretrain.optimizer.lr=0.005"]
    with project.start("--name", "first", *edit, verb=("exp", "run")) as process:
        wait_for_step(project, process, 30)
        while "pretrain" not in runs_of(project, "first"):
            assert process.poll() is None, "ended before MLflow was told of it"
            time.sleep(0.2)
        subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=False)
        process.communicate()
    begun = runs_of(project, "first")["pretrain"]
    assert "resumed from step" in project.dvc("exp", "run", "--name", "second", *edit).stdout
    runs = runs_of(project, "second")
    assert runs["pretrain"].info.run_id == begun.info.run_id
    assert runs["pretrain"].info.run_name.endswith(" second")
    assert set(runs_of(project, "first")) == {"tokenize"}
