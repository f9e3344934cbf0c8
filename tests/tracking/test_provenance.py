"""Where a result comes from: what differs from the preset, and where DVC keeps it."""

import subprocess
from pathlib import Path

import pytest

from smollm.tracking import provenance


def test_what_differs_is_named_by_its_last_key() -> None:
    base = {"seed": 1, "pretrain": {"steps": 5000, "optimizer": {"lr": 0.003, "betas": [0.9, 0.95]}}}
    assert provenance.differences(base, base) == []
    changed = {"seed": 2, "pretrain": {"steps": 5000, "optimizer": {"lr": 1e-3, "betas": [0.9, 0.99]}}}
    assert provenance.differences(changed, base) == ["seed=2", "lr=0.001", "betas=[0.9, 0.99]"]


@pytest.mark.parametrize(
    ("config", "local", "expected"),
    [
        ("[core]\n    remote = here\n['remote \"here\"']\n    url = ../elsewhere\n", "", "../elsewhere"),
        (
            "[core]\n    remote = a\n['remote \"a\"']\n    url = s3://x/1\n['remote \"b\"']\n    url = s3://x/2\n",
            "[core]\n    remote = b\n",
            "s3://x/2",
        ),
        (
            "[core]\n    remote = a\n['remote \"a\"']\n    url = ssh://me:word@host/path%20x\n",
            "",
            "ssh://host/path%20x",
        ),
        ("", "", ""),
        ("no config", "", ""),
    ],
    ids=["folder", "local", "password", "none", "damaged"],
)
def test_dvcs_remote_is_named_without_its_password(tmp_path: Path, config: str, local: str, expected: str) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(config)
    (tmp_path / ".dvc" / "config.local").write_text(local)
    assert provenance.dvc_remote(tmp_path) == expected


def test_git_that_refuses_is_no_missing_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.git_state(tmp_path) == {}
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    assert provenance.git_state(tmp_path) == {}
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(provenance.GitRefused, match=f"dubious ownership.* git config --global --add .* {tmp_path}$"):
        provenance.git_state(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(provenance.GitRefused, match="not installed"):
        provenance.git_state(tmp_path)


def test_what_dvc_writes_around_a_stage_makes_no_tree_dirty(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("params.yaml", "dvc.lock", "reports/pretrain/metrics.json")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "all")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    params, lock, metrics = files
    lock.write_text("after")
    metrics.unlink()
    assert provenance.git_state(tmp_path)["git.dirty"] == "false"
    params.write_text("after")
    assert provenance.git_state(tmp_path)["git.dirty"] == "true"
