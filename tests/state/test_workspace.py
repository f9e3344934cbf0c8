"""What dvc.yaml, params.yaml and dvc.lock say of a stage, and digests as DVC computes them."""

import time
from pathlib import Path

import pytest
from support.live_states import state
from support.structure import ROOT

from smollm.state.workspace import Workspace, fingerprint_of


@pytest.mark.parametrize("change", ["code.py", "data/deep/a.txt", "params.yaml", "dvc.yaml"])
def test_another_input_param_or_command_is_another_state(change: str, workspace: Workspace) -> None:
    before = state(workspace).fingerprint
    path = workspace.directory / change
    path.write_text(path.read_text().replace("seed: 1", "seed: 2").replace("-m train", "-m other") + "\n# new\n")
    assert state(workspace).fingerprint != before


def test_a_param_that_the_stage_does_not_name_changes_nothing(workspace: Workspace) -> None:
    before = state(workspace).fingerprint
    (workspace.directory / "params.yaml").write_text("seed: 1\neps: 1.0e-5\nother: 3\n")
    assert state(workspace).fingerprint == before


def test_the_fingerprint_depends_on_each_of_its_parts() -> None:
    prints = {
        fingerprint_of("a", {"x": "1"}, {"p": 1}),
        fingerprint_of("b", {"x": "1"}, {"p": 1}),
        fingerprint_of("a", {"x": "2"}, {"p": 1}),
        fingerprint_of("a", {"x": None}, {"p": 1}),
        fingerprint_of("a", {"x": "1"}, {"p": 2}),
    }
    assert len(prints) == 5


def test_dvc_root_names_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DVC_ROOT", "/repository")
    assert Workspace.find(tmp_path).root == Path("/repository")
    monkeypatch.delenv("DVC_ROOT")
    assert Workspace.find(tmp_path).root == tmp_path


FILES = (
    *("b.txt", "deep/a.txt", "deep/ü b.txt", "deep/__pycache__/a.py", "a.pyc", "deep/.venv/bin/python"),
    *("scratch/x.txt", "deep/scratch/x.txt", "kept.tmp", "other.tmp", "a/z", "a-b/z", "a.b", "A/z"),
)


@pytest.mark.parametrize("with_users_own", [False, True])
def test_digests_are_dvcs(with_users_own: bool, tmp_path: Path) -> None:
    """Of what any .dvcignore leaves, links, empty folders and odd order included."""
    from dvc.repo import Repo

    (tmp_path / ".dvcignore").write_bytes((ROOT / ".dvcignore").read_bytes())
    if with_users_own:
        with (tmp_path / ".dvcignore").open("a") as file:
            file.write("*.tmp\n!kept.tmp\n/folder/scratch/\nfolder/**/u*\n")
    for name in FILES:
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text(name)
    (tmp_path / "folder" / "empty").mkdir()
    (tmp_path / "folder" / "link").symlink_to("b.txt")
    (tmp_path / "folder" / "linked folder").symlink_to("deep")
    (tmp_path / "nothing in it").mkdir()
    (tmp_path / "one.txt").write_text("one")
    Repo.init(str(tmp_path), no_scm=True).close()
    workspace = Workspace(tmp_path, tmp_path)
    digests = {}
    with Repo(str(tmp_path)) as repo:
        for name in ("folder", "nothing in it", "one.txt"):
            (added,) = repo.add(str(tmp_path / name))
            digests[name] = added.outs[0].hash_info.value
            assert workspace.digest(name) == digests[name]
    assert workspace.digest("nothing") is None
    assert workspace.digest("one.txt/nothing") is None
    (tmp_path / "folder" / "kept.tmp").write_text("another")
    assert workspace.digest("folder") != digests["folder"]
    (tmp_path / "folder" / "kept.tmp").write_text("kept.tmp")
    (tmp_path / "folder" / "other.tmp").write_text("another")
    assert (workspace.digest("folder") == digests["folder"]) == with_users_own


def test_a_digest_of_many_files_takes_no_longer_than_reading_them(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(2000):
        (tmp_path / "many" / str(number)).write_text("x")
    workspace = Workspace(tmp_path, tmp_path)
    workspace.digest("many")  # imports DVC
    began = time.process_time()
    workspace.digest("many")
    assert time.process_time() - began < 1
