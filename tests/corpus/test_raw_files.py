"""Which files of data/raw a glob means, and which of them are refused."""

import gzip
import json
import os
from pathlib import Path

import pytest
from support.corpus import POINTER, files_of, put_raw

from smollm.errors import CorpusError


def test_links_that_lead_nowhere_or_in_circles_are_named(tmp_path: Path) -> None:
    put_raw(tmp_path, "a.txt", b"text")
    link = tmp_path / "data" / "raw" / "b.txt"
    for target in ("b.txt", "gone.txt"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(
            CorpusError, match=r"must match files, got data/raw/b\.txt, a link that leads to none; remove"
        ):
            list(files_of(tmp_path, "data/raw/*.txt").documents())


@pytest.mark.parametrize("target", ["data/raw", "elsewhere"])
def test_a_linked_folder_below_a_deep_glob_is_refused_not_passed_over(target: str, tmp_path: Path) -> None:
    put_raw(tmp_path, "a.txt", b"text")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("text")
    (tmp_path / "data" / "raw" / "link").symlink_to(tmp_path / target)
    with pytest.raises(CorpusError, match=r"must not lead through a linked folder, .* got data/raw/link; copy"):
        list(files_of(tmp_path, "data/raw/**/*.txt").documents())


def test_names_that_look_like_globs_are_names(tmp_path: Path) -> None:
    for name in ("a[1]", "a1", "b*", "bc", "c d"):
        put_raw(tmp_path, f"{name}.jsonl", json.dumps({"text": name}).encode())
        put_raw(tmp_path, f"{name}.txt", name.encode())
    found = {d.key: d.text for d in files_of(tmp_path).documents()}
    assert len(found) == 10
    assert all(Path(key.partition("#")[0]).stem == text for key, text in found.items())


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    put_raw(tmp_path, os.fsdecode(b"caf\xe9.txt"), b"text")
    with pytest.raises(CorpusError, match=r"names are UTF-8 and printable, got 'data/raw/caf\\udce9\.txt'; rename"):
        list(files_of(tmp_path).documents())


def test_globs_pass_over_hidden_files_and_dvcs_own(tmp_path: Path) -> None:
    for name in ("a.txt", "deep/b.txt", ".gitkeep", ".gitignore", ".c.txt", ".cache/d.txt", "a.txt.dvc", "deep/.b.txt"):
        put_raw(tmp_path, name, name.encode())
    expected = {
        "data/raw/*": {"a.txt"},
        "data/raw/**/*": {"a.txt", "deep/b.txt"},
        "data/raw/.c.txt": {".c.txt"},
        "data/raw/.cache/*": {".cache/d.txt"},
    }
    for pattern, names in expected.items():
        assert {d.text for d in files_of(tmp_path, pattern).documents()} == names
    with pytest.raises(CorpusError, match=r"must match files, got none for 'data/raw/\*\.dvc'"):
        list(files_of(tmp_path, "data/raw/*.dvc").documents())


def test_a_glob_without_a_match_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"must match files, got none for 'data/raw/\*\.txt'"):
        list(files_of(tmp_path, "data/raw/*.txt").documents())


def test_a_linked_folder_is_refused_since_dvc_does_not_watch_it(tmp_path: Path) -> None:
    put_raw(tmp_path, "one.txt", b"text")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("text")
    (tmp_path / "data" / "raw" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorpusError, match=r"must not lead through a linked folder, .* got data/raw/link/a\.txt"):
        list(files_of(tmp_path, "data/raw/link/*.txt").documents())
    (tmp_path / "data" / "raw" / "file.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    assert len(list(files_of(tmp_path, "data/raw/*.txt").documents())) == 2


@pytest.mark.parametrize("name", ["b.txt", "b.jsonl", "b.csv", "b.parquet", "b.jsonl.gz", "b.txt.zst"])
def test_a_git_lfs_pointer_is_no_text(name: str, tmp_path: Path) -> None:
    put_raw(tmp_path, "a.txt", b"text that mentions version https://git-lfs.github.com/spec/v1")
    put_raw(tmp_path, name, POINTER)
    with pytest.raises(
        CorpusError, match=rf"^data/raw/{name}: must hold the content itself, got a Git LFS .*`git lfs pull`"
    ):
        list(files_of(tmp_path).documents())


def test_a_file_of_the_very_name_of_the_glob_is_meant_itself(tmp_path: Path) -> None:
    for name in ("a[1].txt", "a1.txt", "b1.txt"):
        put_raw(tmp_path, name, name.encode())
    assert [d.text for d in files_of(tmp_path, "data/raw/a[1].txt").documents()] == ["a[1].txt"]
    assert [d.text for d in files_of(tmp_path, "data/raw/b[1].txt").documents()] == ["b1.txt"]


@pytest.mark.parametrize(
    "character", ["?", "%20", ":", "#", " ", "\u00e9", "\u6f22", "\U0001f600", "'", '"', "\u202f", "\\"]
)
def test_names_may_hold_any_printable_character(character: str, tmp_path: Path) -> None:
    name = f"a{character}1"
    workspace = tmp_path / name
    put_raw(workspace, f"{name}.txt", b"plain")
    put_raw(workspace, f"{name}/{name}.jsonl.gz", gzip.compress(b'{"text": "row"}'))
    found = {document.key: document.text for document in files_of(workspace, "data/raw/**/*").documents()}
    assert found == {f"data/raw/{name}.txt": "plain", f"data/raw/{name}/{name}.jsonl.gz#0": "row"}


@pytest.mark.parametrize("character", ["\n", "\t", "\r", "\x1b"])
def test_a_name_with_a_control_character_is_refused(character: str, tmp_path: Path) -> None:
    put_raw(tmp_path, f"a{character}b.txt", b"text")
    with pytest.raises(
        CorpusError, match=r"names are UTF-8 and printable, got 'data/raw/a\\.*b\.txt'; rename the file"
    ) as caught:
        list(files_of(tmp_path).documents())
    assert str(caught.value).isprintable()


def test_data_raw_itself_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    put_raw(tmp_path / "disk", "a.txt", b"one")
    put_raw(tmp_path / "disk", "deep/b.jsonl", b'{"text": "two"}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "raw").symlink_to(tmp_path / "disk" / "data" / "raw")
    for glob in ("data/raw/**/*", "data/raw/**/*.*"):
        documents = files_of(tmp_path, glob).documents()
        assert {d.key: d.text for d in documents} == {"data/raw/a.txt": "one", "data/raw/deep/b.jsonl#0": "two"}
    (tmp_path / "data" / "raw" / "linked").symlink_to(tmp_path / "disk" / "data" / "raw" / "deep")
    with pytest.raises(CorpusError, match="must not lead through a linked folder"):
        list(files_of(tmp_path, "data/raw/**/*").documents())
