"""The stage `tokenize` killed by kill -9, in a real `dvc repro`."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from support.clone import Clone
from support.structure import ROOT

pytestmark = pytest.mark.slow

OUTPUTS = [
    "tokenizer/tokenizer.json",
    *(f"tokens/{s}/{split}.bin" for s in ("pretrain", "finetune") for split in ("train", "validation")),
]


@pytest.fixture
def project(tmp_path: Path) -> Clone:
    return Clone.of_working_tree(tmp_path / "project")


def kill(project: Clone, point: str) -> str:
    """What a start prints that kills itself at this point."""
    commands = project.directory.parent / "bin"
    commands.mkdir(exist_ok=True)
    python = commands / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/support/kill_points.py" "$@"\n')
    python.chmod(0o755)
    with project.start("tokenize", KILL_AT=point, first_on_path=str(commands)) as process:
        printed, _ = process.communicate()
    assert process.returncode != 0, printed
    assert "Traceback" not in printed
    return printed


def kept(project: Clone) -> dict[str, int]:
    """When each file of the unfinished stage was written."""
    (data,) = project.directory.glob(".resume/tokenize/*/data")
    return {path.relative_to(data).as_posix(): path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}


def test_a_killed_stage_trains_no_tokenizer_again_and_encodes_no_text_again(project: Clone, tmp_path: Path) -> None:
    printed = kill(project, "second file of tokens is digested")  # all of finetune's text is encoded
    assert "resumed after" not in printed
    before = kept(project)
    output = project.dvc("repro", "tokenize").stdout
    assert "tokenize: finetune: resumed after " in output
    assert "tokenize: pretrain: resumed after " not in output, "its files were complete"
    after = kept(project)
    for name in ("tokenizer/tokenizer.json", "tokens/pretrain/train.bin", "tokens/pretrain/manifest.json"):
        assert after[name] == before[name], name
    alone = Clone.of_working_tree(tmp_path / "alone")
    alone.dvc("repro", "tokenize")
    for path in OUTPUTS:
        assert (project.directory / "data" / path).read_bytes() == (alone.directory / "data" / path).read_bytes(), path
    assert not list(project.directory.glob("data/tokens/*/progress.json"))


def test_a_stage_begins_anew_where_packages_were_upgraded_since_the_kill(project: Clone) -> None:
    kill(project, "first file of tokens is digested")
    (record,) = project.directory.glob(".resume/tokenize/*/sources.json")
    versions = json.loads(record.read_text())
    record.write_text(json.dumps({**versions, "pretrain": {**versions["pretrain"], "python": "3.0.0"}}))
    before = kept(project)
    printed = kill(project, "first file of tokens is digested")
    assert "resumed after" not in printed
    assert kept(project)["tokenizer/tokenizer.json"] != before["tokenizer/tokenizer.json"]
    assert "pretrain: resumed after" in project.dvc("repro", "tokenize").stdout


def test_data_raw_on_another_disk_and_names_of_all_kinds_are_read_and_watched(tmp_path: Path) -> None:
    """data/raw is a link, and the project lies in a folder that no PYTHONPATH and no URL can hold as it is."""
    project = Clone.of_working_tree(tmp_path / "a:b %20 ?#é'")
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("what?", "a%20b", "c:d", "e#f", "g h", "é", *map(str, range(30))):
        (disk / f"{name}.txt").write_text(f"the cat {name} sat on the mat\n" * 50)
    shutil.rmtree(project.directory / "data" / "raw")
    (project.directory / "data" / "raw").symlink_to(disk)
    for stage in ("pretrain", "finetune"):
        project.set({f"corpus.{stage}.source": "files", f"corpus.{stage}.files": ["data/raw/*.txt"]})
    project.dvc("repro", "tokenize")
    manifest = project.json("data/tokens/pretrain/manifest.json")
    assert len(manifest["versions"]) == 36
    assert {row[4] for row in project.rows("data/tokens/pretrain/documents.tsv")} == manifest["versions"].keys()
    assert "up to date" in project.dvc("repro", "tokenize").stdout
    (disk / "7.txt").write_text("the dog barks\n" * 40)
    assert project.repro("tokenize") == ["tokenize"]
