"""Sources of text: packages, documentation, the user's own files."""

import codecs
import gzip
import hashlib
import json
import sys
import sysconfig
from pathlib import Path

import pandas as pd
import pytest
import zstandard
from support.corpus import COMPRESSORS, files_of, put_raw, source_of

from smollm.config.corpus import CorpusSource
from smollm.corpus.document import PART
from smollm.corpus.packages import code
from smollm.errors import CorpusError


def test_python_gives_the_source_files_of_a_package(tmp_path: Path) -> None:
    documents = {d.key: d.text for d in source_of(tmp_path, CorpusSource.PYTHON).documents()}
    import tqdm.std

    assert documents["tqdm/std.py"] == Path(tqdm.std.__file__).read_text()
    assert all(key.endswith(".py") for key in documents)


def test_python_gives_the_standard_library_without_installed_packages() -> None:
    keys = [document.key for document in code(("stdlib",), lambda: None)]
    assert "stdlib/json/decoder.py" in keys
    assert not any("site-packages" in key for key in keys)


def test_the_order_is_fixed_and_not_the_alphabets(tmp_path: Path) -> None:
    first = [d.key for d in source_of(tmp_path, CorpusSource.PYTHON).documents()]
    assert first == [d.key for d in source_of(tmp_path, CorpusSource.PYTHON).documents()]
    assert first != sorted(first)


def test_python_docs_gives_docstrings_and_readmes_under_the_keys_of_the_code(tmp_path: Path) -> None:
    documents = {
        d.key: d.text for d in source_of(tmp_path, CorpusSource.PYTHON_DOCS, packages=("stdlib", "tqdm")).documents()
    }
    decoder = documents["stdlib/json/decoder.py"]
    assert "raw_decode\n\nDecode a JSON document from" in decoder
    assert "import re" not in decoder
    assert "TRLock\n\nthreading RLock" in documents["tqdm/std.py"]
    assert "import sys" not in documents["tqdm/std.py"]
    assert documents["tqdm/README"].strip()
    assert not any("/test/" in key for key in documents)


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.packages must name installed packages, got 'nonesuch'; install"):
        list(source_of(tmp_path, CorpusSource.PYTHON, packages=("nonesuch",)).documents())


def test_versions_of_python_and_packages_are_recorded(tmp_path: Path) -> None:
    versions = source_of(tmp_path, CorpusSource.PYTHON, packages=("stdlib", "tqdm")).versions()
    assert versions["python"] == sys.version.split()[0]
    assert set(versions) == {"python", "tqdm"}


def test_files_of_every_kind_give_their_texts(tmp_path: Path) -> None:
    text = "héllo\r\n\n  wörld\t\n"
    put_raw(tmp_path, "a.txt", text.encode())
    put_raw(tmp_path, "deep/b.md", b"# title\n\nbody\n")
    put_raw(tmp_path, "c.jsonl", b"".join(json.dumps({"text": t, "id": 1}).encode() + b"\n" for t in ("one", "two")))
    pd.DataFrame({"text": ["three", "four"]}).to_parquet(tmp_path / "data/raw/d.parquet")
    pd.DataFrame({"text": ["five, six"], "n": [1]}).to_csv(tmp_path / "data/raw/e.csv", index=False)
    found = {d.key: d.text for d in files_of(tmp_path, "data/raw/**/*.*").documents()}
    assert found == {
        "data/raw/a.txt": text,
        "data/raw/deep/b.md": "# title\n\nbody\n",
        "data/raw/c.jsonl#0": "one",
        "data/raw/c.jsonl#1": "two",
        "data/raw/d.parquet#0": "three",
        "data/raw/d.parquet#1": "four",
        "data/raw/e.csv#0": "five, six",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\ncaf\xe9\n", r"data/raw/a\.txt: must be UTF-8, got 0xe9 at byte 8; convert"),
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            r"a\.jsonl: line 1: must have the column 'text' .*\['body'\]; name the one",
        ),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl: line 1: column 'text' must hold text, got 3"),
        ("a.jsonl", b'{"text": "x"\n', r"a\.jsonl: line 1: must be JSON, got .*; fix the line"),
        ("a.parquet", b"no parquet", r"a\.parquet: must be readable to its end, got "),
        ("a.bin", b"x", r"corpus\.pretrain\.files must match \.txt, .* files, or such .*, got data/raw/a\.bin"),
    ],
    ids=["utf-8", "column", "number", "json", "parquet", "ending"],
)
def test_a_file_that_cannot_be_read_is_named_with_the_fix(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    put_raw(tmp_path, name, content)
    with pytest.raises(CorpusError, match=message) as caught:
        list(files_of(tmp_path).documents())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_compressed_files_give_the_texts_that_they_hold(kind: str, tmp_path: Path) -> None:
    compress = COMPRESSORS[kind]
    put_raw(tmp_path, f"a.txt.{kind}", compress(b"one\n") + compress("zwei é\n".encode()))  # two streams in a file
    put_raw(tmp_path, f"b.jsonl.{kind}", compress(b'{"text": "three"}\n') + compress(b'{"text": "four"}\n'))
    put_raw(tmp_path, f"c.csv.{kind}", compress(b"text,n\nfive,1\n"))
    found = {d.key: d.text for d in files_of(tmp_path).documents()}
    assert found == {
        f"data/raw/a.txt.{kind}": "one\nzwei é\n",
        f"data/raw/b.jsonl.{kind}#0": "three",
        f"data/raw/b.jsonl.{kind}#1": "four",
        f"data/raw/c.csv.{kind}#0": "five",
    }


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_compressed_file_that_was_cut_off_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    rows = b"".join(b'{"text": "%d"}\n' % (n * 7919) for n in range(20_000))
    content = COMPRESSORS[kind](rows)
    put_raw(tmp_path, f"{name}.{kind}", content[: len(content) // 2])
    with pytest.raises(
        CorpusError, match=rf"^data/raw/{name}\.{kind}: must be readable to its end, got .*; copy"
    ) as caught:
        list(files_of(tmp_path).documents())
    assert len(str(caught.value).splitlines()) == 1


def test_json_may_be_a_list_of_rows(tmp_path: Path) -> None:
    put_raw(tmp_path, "a.json", json.dumps([{"text": "one"}, {"text": "two"}]).encode())
    found = files_of(tmp_path, "data/raw/a.json").documents()
    assert [d.text for d in found] == ["one", "two"]


def test_odd_but_honest_text_is_kept_as_it_is(tmp_path: Path) -> None:
    put_raw(tmp_path, "nul.txt", b"a\0b\n")
    put_raw(tmp_path, "empty.txt", b"")
    put_raw(tmp_path, "mark.txt", "\ufeffmarked".encode())
    put_raw(tmp_path, "rows.jsonl", json.dumps({"text": "a\0b <|endoftext|>"}).encode())
    source = files_of(tmp_path)
    found = {d.key: d.text for d in source.documents()}
    assert found == {
        "data/raw/mark.txt": "\ufeffmarked",
        "data/raw/nul.txt": "a\0b\n",
        "data/raw/rows.jsonl#0": "a\0b <|endoftext|>",
    }
    assert source.left_out.blank == 1


def test_a_long_file_is_read_in_parts(tmp_path: Path) -> None:
    put_raw(tmp_path, "a.txt", b"a line of text\n" * 300_000)
    (document,) = files_of(tmp_path, "data/raw/a.txt").documents()
    sizes = [len(part) for part in document.parts()]
    assert sum(sizes) == document.size == 4_500_000
    assert max(sizes) <= PART
    assert document.sha256 == hashlib.sha256(b"a line of text\n" * 300_000).hexdigest()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_changes_while_it_is_read_is_refused(name: str, tmp_path: Path) -> None:
    put_raw(tmp_path, name, b'{"text": "one"}\n{"text": "two"}\n')
    waiting = files_of(tmp_path).documents()
    first = next(waiting)
    with (tmp_path / "data" / "raw" / name).open("ab") as file:
        file.write(b'{"text": "three"}\n')
    with pytest.raises(CorpusError, match=rf"^data/raw/{name}: changed while it was read; run again"):
        for document in [first, *waiting]:
            assert document.text


def test_a_file_that_changes_between_two_readings_is_refused(tmp_path: Path) -> None:
    put_raw(tmp_path, "a.txt", b"one")
    source = files_of(tmp_path)
    assert [d.text for d in source.documents()] == ["one"]
    put_raw(tmp_path, "a.txt", b"other")
    with pytest.raises(CorpusError, match="changed while it was read"):
        list(source.documents())


def test_cells_of_a_csv_file_are_texts_whatever_they_look_like(tmp_path: Path) -> None:
    put_raw(tmp_path, "a.csv", b'text,n\n123,1\nNA,2\n,3\n"null",4\n2020-01-01,5\n')
    source = files_of(tmp_path, "data/raw/a.csv")
    assert [d.text for d in source.documents()] == ["123", "NA", "null", "2020-01-01"]
    assert source.left_out.blank == 1


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "a.jsonl.gz"])
def test_empty_files_are_left_out_and_counted(name: str, tmp_path: Path) -> None:
    put_raw(tmp_path, name, gzip.compress(b"") if name.endswith("gz") else b"")
    put_raw(tmp_path, "b.txt", b"text")
    source = files_of(tmp_path)
    assert [d.text for d in source.documents()] == ["text"]
    assert source.left_out.blank == 1


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_the_ending_of_a_compression_may_be_in_capitals(kind: str, tmp_path: Path) -> None:
    put_raw(tmp_path, f"a.TXT.{kind.upper()}", COMPRESSORS[kind](b"text"))
    assert [d.text for d in files_of(tmp_path).documents()] == ["text"]


def test_a_file_that_is_gone_is_one_line(tmp_path: Path) -> None:
    put_raw(tmp_path, "a.txt", b"one")
    put_raw(tmp_path, "b.txt", b"two")
    waiting = files_of(tmp_path).documents()
    next(waiting)
    (tmp_path / "data" / "raw" / "b.txt").unlink()
    with pytest.raises(CorpusError, match=r"^data/raw/b\.txt: must "):
        next(waiting)


@pytest.mark.parametrize("split", range(1, 4))
def test_a_character_cut_by_a_chunk_is_still_utf_8(split: int, tmp_path: Path) -> None:
    put_raw(tmp_path, "a.txt", b"x" * ((1 << 20) - split) + "😀".encode() + b" end")
    (document,) = files_of(tmp_path, "data/raw/a.txt").documents()
    assert document.text.endswith("😀 end")


def test_the_byte_of_a_bad_character_is_counted_over_chunks(tmp_path: Path) -> None:
    put_raw(tmp_path, "a.txt", b"x" * ((1 << 20) - 1) + b"\xf0\x9fX")
    with pytest.raises(CorpusError, match=f"at byte {(1 << 20) - 1};"):
        list(files_of(tmp_path, "data/raw/a.txt").documents())


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (codecs.BOM_UTF16_LE + "text, “ÿ”".encode("utf-16-le"), "utf-16"),
        (codecs.BOM_UTF16_BE + "text, “ÿ”".encode("utf-16-be"), "utf-16"),
        ("text, “ÿ”".encode("windows-1252"), "windows-1252"),
        (b"text, \xff\xfe", "windows-1252"),
    ],
    ids=["little-endian", "big-endian", "windows", "no mark"],
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_the_advice_names_the_encoding(name: str, content: bytes, advice: str, tmp_path: Path) -> None:
    put_raw(tmp_path, name, content)
    with pytest.raises(CorpusError, match=rf"must be UTF-8, .*; convert it, e\.g\. iconv -f {advice} -t utf-8$"):
        list(files_of(tmp_path).documents())


def test_a_local_folder_stands_in_for_a_hub_dataset(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "from afar"}\n')
    found = list(source_of(tmp_path, CorpusSource.HUB, dataset=str(tmp_path / "set")).documents())
    assert [d.text for d in found] == ["from afar"]


def test_a_hub_dataset_out_of_reach_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.pretrain\.hub\.dataset must be .* reached, got 'no-one/nothing'"):
        list(source_of(tmp_path, CorpusSource.HUB, dataset="no-one/nothing").documents())


def test_files_in_another_encoding_are_left_out_of_the_python_source_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "odd.py").write_bytes(b"# -*- coding: latin-1 -*-\n# caf\xe9\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    source = source_of(tmp_path, CorpusSource.PYTHON, packages=("stdlib",))
    assert [d.key for d in source.documents()] == ["stdlib/good.py"]
    assert source.left_out.not_utf8 == 1


def test_blank_documents_are_dropped(tmp_path: Path) -> None:
    put_raw(tmp_path, "a.jsonl", b'{"text": " \\n"}\n{"text": "x"}\n')
    source = files_of(tmp_path, "data/raw/a.jsonl")
    found = list(source.documents())
    assert [d.text for d in found] == ["x"]
    assert found[0].key == "data/raw/a.jsonl#1"
    assert source.left_out.blank == 1


@pytest.mark.parametrize("window_log", [28, 31])
def test_zstd_files_with_long_windows_are_read(window_log: int, tmp_path: Path) -> None:
    rows = b"".join(b'{"text": "%d"}\n' % (n * 7919) for n in range(20_000))
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # which knows no length
    content = compressor.compress(rows) + compressor.flush()
    assert zstandard.get_frame_parameters(content).window_size == 1 << window_log
    put_raw(tmp_path, "a.jsonl.zst", content)
    assert [int(document.text) for document in files_of(tmp_path).documents()] == [n * 7919 for n in range(20_000)]
    put_raw(tmp_path, "a.jsonl.zst", content[:-5])
    with pytest.raises(CorpusError, match=r"must be readable to its end, got EOFError: the last zstd frame is cut off"):
        list(files_of(tmp_path).documents())
