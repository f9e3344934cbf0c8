"""The pipeline where a user's files may lie: a folder of any name, files of another user, no Git repository."""

import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import mlflow
import pytest
from support.clone import Clone

from smollm.tracking.mlflow_store import sqlite_uri

STRANGE = "a?b#c %20 d é日本"
"""A folder's name with what addresses give a meaning to."""

pytestmark = pytest.mark.slow


def only_run(project: Clone) -> "mlflow.entities.Run":
    client = mlflow.MlflowClient(sqlite_uri(project.directory / "mlruns" / "mlflow.db"))
    (run,) = client.search_runs([client.get_experiment_by_name("smollm").experiment_id])
    return run


def test_a_stage_runs_below_a_folder_of_any_name_whose_repository_git_refuses(tmp_path: Path) -> None:
    project = Clone.of_working_tree(tmp_path / "project")
    (tmp_path / "project").rename(tmp_path / STRANGE)
    project.directory = tmp_path / STRANGE
    said = project.dvc(
        "repro",
        "tokenize",
        GIT_TEST_ASSUME_DIFFERENT_OWNER="1",
        MPLBACKEND="module://matplotlib_inline.backend_inline",
    ).stdout
    assert said.count("Git did not report commit and branch") == 1
    assert "git config --global --add safe.directory" in said
    run = only_run(project)
    assert run.info.status == "FINISHED"
    assert run.data.tags["git.commit"] == "unknown"
    picture = ElementTree.parse(project.directory / "reports" / "tokenize" / "lengths.svg")
    assert len(list(picture.iter())) > 50
    assert list(project.directory.glob("mlruns/artifacts/smollm/*/artifacts/lengths.svg"))
    assert [path.name for path in tmp_path.iterdir()] == [STRANGE]


def test_an_archive_without_git_runs_as_make_repro_says(tmp_path: Path) -> None:
    project = Clone.of_working_tree(tmp_path / "project")
    shutil.rmtree(project.directory / ".git")
    refused = project.run("make", "repro", "VENV=", check=False)
    assert refused.returncode != 0
    assert "git init && git add -A && git commit -m begin`, or `dvc config core.no_scm true`" in refused.stdout
    project.dvc("config", "core.no_scm", "true")
    project.dvc("repro", "tokenize")
    run = only_run(project)
    assert run.info.status == "FINISHED"
    assert "git.commit" not in run.data.tags
