"""Models found by folder, revision and run: in a real repository of Git and DVC, with a real MLflow store."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from support.clone import empty_store
from support.structure import ROOT

from smollm.errors import CheckpointError
from smollm.operate.models import FoundModel, find_model, read_revision
from smollm.state.workspace import Workspace
from smollm.tracking import lookup
from smollm.tracking.mlflow_store import MlflowStore

STAGES = ("pretrain", "finetune")


class Project:
    """A repository whose stages have made small files, and whose remote lies beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = Workspace(root, root)

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        command = ["git", "-C", str(self.root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def train(self, content: str) -> None:
        """Leave what the stages would: a model that holds `content`, recorded and pushed."""
        for stage in STAGES:
            shutil.rmtree(self.root / "models" / stage, ignore_errors=True)
            (self.root / "models" / stage / "sub").mkdir(parents=True)
            for name in ("config.json", "sub/weights"):
                (self.root / "models" / stage / name).write_text(f"{content} {stage} {name}")
        with Repo(str(self.root)) as repo:
            repo.commit(force=True)
            repo.push()
        self.git("add", "-A")
        self.git("commit", "-qm", content)

    def digest(self, stage: str) -> str:
        lock = yaml.safe_load((self.root / "dvc.lock").read_text())
        digest: str = lock["stages"][stage]["outs"][0]["md5"]
        return digest

    def find(self, name: str) -> tuple[FoundModel, dict[str, str]]:
        """The model of this name, and its files."""
        with find_model(name, self.workspace) as model:
            files = {path for path in model.directory.rglob("*") if path.is_file()}
            return model, {path.relative_to(model.directory).as_posix(): path.read_text() for path in files}

    def forget(self) -> None:
        """Be as a fresh clone: no cache, no outputs."""
        shutil.rmtree(self.root / ".dvc/cache/files", ignore_errors=True)
        shutil.rmtree(self.root / "models", ignore_errors=True)


def files_of(content: str, stage: str = "finetune") -> dict[str, str]:
    return {name: f"{content} {stage} {name}" for name in ("config.json", "sub/weights")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With two commits, of which the first is tagged, and an experiment."""
    root = tmp_path_factory.mktemp("models") / "project"
    (root / "models").mkdir(parents=True)
    project = Project(root)
    project.git("init", "-q", "-b", "main")
    Repo.init(str(root)).close()
    shutil.copyfile(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    (root / ".gitignore").write_text("/models\n")
    (root / "params.yaml").write_text("seed: 1\n")
    stages = {stage: {"cmd": "true", "outs": [f"models/{stage}"]} for stage in STAGES}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    project.train("first")
    project.git("tag", "v1")
    project.train("trial")
    with Repo(str(root)) as repo:
        repo.experiments.save(name="low")
    project.git("rm", "-q", "--cached", "params.yaml")
    (root / "params.yaml").unlink()
    project.train("second")
    return project


@pytest.fixture
def project(trained: Project) -> Iterator[Project]:
    """With all of it here, before and after the test."""
    yield trained
    with Repo(str(trained.root)) as repo:
        repo.pull(force=True)


def refusal(project: Project, name: str) -> str:
    with pytest.raises(CheckpointError) as error:
        project.find(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_the_model_in_it(project: Project, tmp_path: Path) -> None:
    model, files = project.find("models/pretrain")
    assert files == files_of("second", "pretrain")
    assert (model.stage, model.directory) == ("pretrain", project.root / "models/pretrain")
    (tmp_path / "config.json").write_text("mine")
    model, files = project.find(str(tmp_path))
    assert (files, model.stage) == ({"config.json": "mine"}, None)


def test_a_revision_is_its_finetuned_model_or_the_one_of_the_stage_that_it_names(project: Project) -> None:
    model, files = project.find("v1")
    assert files == files_of("first")
    assert (model.stage, model.revision) == ("finetune", project.git("rev-parse", "v1"))
    assert not model.directory.exists(), "what was made for this is gone"
    assert project.find("v1:pretrain")[1] == files_of("first", "pretrain")
    assert project.find("low")[1] == project.find("main~1")[1] == files_of("trial")
    assert project.find(project.git("rev-parse", "HEAD")[:7])[1] == files_of("second")
    assert (project.root / "models/finetune/config.json").read_text() == "second finetune config.json"


def test_what_is_not_here_is_pulled(project: Project) -> None:
    project.forget()
    assert project.find("low")[1] == files_of("trial")
    assert project.find("models/pretrain/")[1] == files_of("second", "pretrain")
    cached = [path for path in (project.root / ".dvc/cache/files").rglob("*") if path.is_file()]
    next(path for path in cached if path.read_text() == "trial finetune config.json").unlink()
    assert project.find("low")[1] == files_of("trial")
    assert not (project.root / "models").exists()


def test_what_neither_cache_nor_remote_has_is_one_line(project: Project) -> None:
    remote = project.root.parent / "smollm-dvc-remote"
    remote.rename(f"{remote}-away")
    try:
        project.forget()
        message = refusal(project, "v1")
    finally:
        shutil.rmtree(remote, ignore_errors=True)
        Path(f"{remote}-away").rename(remote)
    assert message.startswith("models/finetune of v1: must be in DVC's cache or remote (md5 ")
    assert "neither has it" in message


@pytest.mark.parametrize("name", ["no-such-thing", "v1:tokenize", "models/other", "0123456789abcdef", "models:/x@best"])
def test_a_name_of_nothing_is_refused(project: Project, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(project, monkeypatch)
    assert f"got {name!r}" in refusal(project, name)


def test_a_revision_without_a_model_says_which_it_has(project: Project) -> None:
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())
    del lock["stages"]["finetune"]
    (project.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    project.git("commit", "-qam", "pretrain alone")
    try:
        assert "use HEAD:pretrain" in refusal(project, "HEAD")
    finally:
        project.git("reset", "-q", "--hard", "HEAD~1")


def test_a_file_of_a_revision_is_read_without_a_checkout(project: Project) -> None:
    assert read_revision("params.yaml", project.git("rev-parse", "v1"), project.workspace) == "seed: 1\n"
    assert read_revision("params.yaml", project.git("rev-parse", "main"), project.workspace) is None


def make_store(project: Project, monkeypatch: pytest.MonkeyPatch) -> MlflowStore:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (project.root / "mlruns").mkdir(exist_ok=True)
    shutil.copyfile(empty_store(), project.root / "mlruns" / "mlflow.db")
    return MlflowStore.of(project.root)


def test_a_run_is_its_model_by_id_by_the_start_of_it_and_by_the_registry(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.git("checkout", "-q", "v1")
    digest = project.digest("pretrain")
    project.git("checkout", "-q", "main")
    client = make_store(project, monkeypatch).client()
    tags = {"stage": "pretrain", "dvc.out.models/pretrain": digest}
    run_id = client.create_run("0", tags=tags, run_name="a run").info.run_id
    other = client.create_run("0", tags={"stage": "tokenize"}).info.run_id
    client.create_registered_model("smollm")
    client.create_model_version("smollm", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("smollm", "best", "1")
    for name in (run_id, run_id[:12], "models:/smollm@best", "models:/smollm/1"):
        model, files = project.find(name)
        assert (files, model.run_id, model.stage) == (files_of("first", "pretrain"), run_id, "pretrain")
    assert "got a run of tokenize that is RUNNING" in refusal(project, other)


def test_the_start_of_several_ids_asks_for_more_digits(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_store(project, monkeypatch).client()
    ids = [client.create_run("0").info.run_id for _ in range(2)]
    runs = [lookup.FoundRun(run_id, "a run", "FINISHED", {}) for run_id in ids]
    monkeypatch.setattr(lookup, "find_runs", lambda store, name: runs)
    message = refusal(project, "abcd")
    assert "add digits" in message
    assert all(run_id[:8] in message for run_id in ids)
