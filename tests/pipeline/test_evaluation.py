"""The optional stage `evaluate` in a real pipeline: off the main path, killed, resumed, reported."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.clone import Clone, completed, environment
from support.mlflow_runs import client, runs

EXACT = ("report.md", "metrics.json", "positions.tsv", "sources.tsv", "samples.tsv", "positions.svg", "overlap.svg")


def make_evaluate(project: Clone) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["make", "evaluate", "VENV="],
        cwd=project.directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_end_of_group(group: int, seconds: float) -> None:
    """Return when nothing is left of make's killed child: to DVC, one that nobody has waited for is still at work."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        while os.killpg(group, 0) is None:
            assert time.monotonic() < deadline, "processes are left"
            time.sleep(0.1)


@pytest.mark.slow
def test_make_evaluate_survives_a_kill_and_is_no_part_of_the_pipeline_before_it(tmp_path: Path) -> None:
    project = completed().copy(tmp_path / "project")
    project.set({"evaluate.sequence_length": 32, "evaluate.samples": 8, "evaluate.sample_tokens": 32})
    project.commit("params")
    assert project.repro() == []
    assert "up to date" in project.dvc("status").stdout
    assert "failed to load" not in project.dvc("metrics", "show").stdout

    with make_evaluate(project) as process:
        while not list(project.directory.glob(".resume/evaluate/*/data/samples_pretrain.json")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    wait_for_end_of_group(process.pid, seconds=30)
    with make_evaluate(project) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "held out pretrain: already measured before the restart" in output
    assert "samples pretrain: already measured before the restart" in output

    assert project.repro() == []
    project.commit("evaluated")
    assert "up to date" in project.dvc("status").stdout
    assert "reports/evaluate/metrics.json" in project.dvc("metrics", "show").stdout
    project.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    assert "position in the context" in (tmp_path / "plots" / "index.html").read_text()

    (run,), (parent,) = runs(project)["evaluate"], runs(project)["finetune"]
    metrics = project.json("reports/evaluate/metrics.json")
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.metrics["evaluate/finetune_bits_per_byte"] == metrics["finetune"]["bits_per_byte"]
    assert "report.md" in {file.path for file in client(project).list_artifacts(run.info.run_id)}
    page = (project.directory / "reports" / "evaluate" / "report.md").read_text()
    assert [row[0] for row in project.rows("reports/evaluate/sources.tsv")] == ["pretrain: stdlib", "finetune: stdlib"]
    assert metrics["model"] in page and f"{metrics['pretrain']['bits_per_byte']:.4f}" in page

    before = {name: (project.directory / "reports" / "evaluate" / name).read_bytes() for name in EXACT}
    project.dvc("repro", "--force", "--single-item", "evaluate/dvc.yaml")
    for name, content in before.items():
        assert (project.directory / "reports" / "evaluate" / name).read_bytes() == content, name

    project.set({"evaluate.tasks": ["nonesuch"]})  # retrains nothing, and is refused before anything is measured
    assert project.repro() == []
    refused = project.dvc("repro", "evaluate/dvc.yaml", check=False)
    assert refused.returncode != 0 and "Traceback" not in refused.stdout
    assert "params.yaml: evaluate.tasks must" in refused.stdout
