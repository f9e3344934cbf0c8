"""Tables of text: what a row says is its text, and what a broken one is told."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.corpus import COMPRESSORS, files_of, put_raw

from smollm.errors import CorpusError


def texts(workspace: Path, name: str, content: bytes, column: str = "text") -> list[str]:
    """What a table of these bytes gives; checks the documents' names."""
    put_raw(workspace, name, content)
    found = list(files_of(workspace, f"data/raw/{name}", text_column=column).documents())
    assert [d.key for d in found] == [f"data/raw/{name}#{index}" for index in range(len(found))]
    return [d.text for d in found]


def refusal(workspace: Path, name: str, content: bytes) -> str:
    with pytest.raises(CorpusError) as caught:
        texts(workspace, name, content)
    message = str(caught.value)
    assert message.isprintable()  # one line
    assert len(message) < 600
    return message


def as_lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(columns: dict[str, object], **options: object) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "line", "cells"),
    [
        (b"text,label\nhello, world,1\nfoo,2\n", 2, 3),
        (b"text,label\nfoo,2\nhello,1,\n", 3, 3),
        (b"text\nhello\none, two, three\n", 3, 3),
        (b'text,label\n"two\nlines",1\n\nhello, world,1\n', 5, 3),
    ],
    ids=["comma", "empty", "one column", "after lines in a cell"],
)
def test_a_csv_row_with_more_cells_than_the_header_is_refused(
    content: bytes, line: int, cells: int, tmp_path: Path
) -> None:
    message = refusal(tmp_path, "a.csv", content)
    assert message.startswith(f"data/raw/a.csv: line {line}: must have no more cells than the header, which has ")
    assert f"got {cells}; put a cell that holds a comma in quotes" in message


def test_a_csv_table_where_every_row_has_a_surplus_comma_is_refused(tmp_path: Path) -> None:
    assert "a.csv: line 2: must have no more cells" in refusal(tmp_path, "a.csv", b"text,label\nhello,1,\nfoo,2,\n")


def test_a_csv_row_without_the_column_is_refused_one_without_others_is_not(tmp_path: Path) -> None:
    assert texts(tmp_path, "a.csv", b"text,label\nhello\nfoo,2\n") == ["hello", "foo"]
    message = refusal(tmp_path, "a.csv", b"label,text\n1,hello\n2\n")
    assert message.startswith("data/raw/a.csv: line 3: must have the column 'text' (corpus.pretrain.text_column), got ")
    assert "got ['label'];" in message


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'text,label\nfoo,1\n"hello" world,1\n', 3, "',' expected after '\"'"),
        (b'text,label\nfoo,1\n"hello,2\nbar,3\n', 3, "unexpected end of data"),
    ],
    ids=["text after quotes", "open quotes"],
)
def test_csv_quotes_that_do_not_match_are_refused_where_the_row_begins(
    content: bytes, line: int, reason: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, "a.csv", content) == (
        f"data/raw/a.csv: line {line}: must be CSV, got {reason}; fix its quotes"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'text,n\r\n"a\r\nb ""q"" \n\r c",1\r\nd,2\r\n', ['a\r\nb "q" \n\r c', "d"]),
        (b'text,n\na "b" c,1\n5",2\n', ['a "b" c', '5"']),
        (b"text,n\ra,1\rb,2\r", ["a", "b"]),
        (b'\xef\xbb\xbf"text",n\na,1\n', ["a"]),
        (b"\n\ntext,n\n\na,1\n   \nb,2\n\n", ["a", "b"]),
        (b"text,text\na,b\n", ["a"]),
        (b"text,n\n a ,1\na\0b,2\n", [" a ", "a\0b"]),
        (b"text,n\n" + b"x" * 300_000 + b",1\n", ["x" * 300_000]),
        (b"text,n\n", []),
    ],
    ids=[
        "cells of many lines",
        "quotes within",
        "CR",
        "mark",
        "blank lines",
        "same name",
        "as it is",
        "long",
        "no row",
    ],
)
def test_a_csv_cell_is_the_text_that_is_written(content: bytes, expected: list[str], tmp_path: Path) -> None:
    assert texts(tmp_path, "a.csv", content) == expected


def test_what_pythons_csv_writes_is_read(tmp_path: Path) -> None:
    expected = ['"', '""', ",", "\n,\n", '"a",b\r\n', "a\nb", "é😀"]
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerows([["n", "text"], *([n, text] for n, text in enumerate(expected))])
    assert texts(tmp_path, "a.csv", content.getvalue().encode()) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"id;text\n1;a, b\n2;c\n", ["a, b", "c"]),
        ("a.csv", b'id\ttext\n1\t"a\tb"\n2\tc; d, e\n', ["a\tb", "c; d, e"]),
        ("a.tsv", b"text\tid\na, b; c\t1\n", ["a, b; c"]),
        ("a.tsv", b"\n\ntext,id\na,1\n", ["a"]),
        ("a.csv", b'"text, long";text\n1;a\n', ["a"]),
        ("a.csv", b"text\na\n", ["a"]),
        ("a.csv", b"", []),
        ("a.csv", b"\n \n", []),
    ],
    ids=["semicolons", "tabs", "tsv", "commas in a tsv", "commas in the header", "one column", "empty", "blank"],
)
def test_the_delimiter_is_the_one_by_which_the_header_has_the_column(
    name: str, content: bytes, expected: list[str], tmp_path: Path
) -> None:
    put_raw(tmp_path, name, content)
    assert [document.text for document in files_of(tmp_path).documents()] == expected


def test_a_row_with_a_surplus_semicolon_is_refused_in_its_words(tmp_path: Path) -> None:
    assert "put a cell that holds a semicolon in quotes" in refusal(tmp_path, "a.csv", b"id;text\n1;a;b\n")


VARYING: dict[str, tuple[object, object]] = {
    "null, then text": (None, "x"),
    "whole, then not": (1, 1.5),
    "number, then text": (1, "x"),
    "empty, then full": ([], ["a"]),
    "date, then text": ("2020-01-01", "soon"),
    "mapping, then list": ({"a": 1}, ["a"]),
}


@pytest.mark.parametrize("case", VARYING)
def test_other_columns_of_json_lines_may_hold_anything(case: str, tmp_path: Path) -> None:
    first, last = VARYING[case]
    long = "x" * 11_000_000  # more than is read at once
    rows = [{"text": "a", "other": first}, {"text": long, "other": first}, {"text": "b", "other": last, "more": 1}]
    assert texts(tmp_path, "a.jsonl", as_lines(*rows)) == ["a", long, "b"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_texts_are_not_taken_for_dates(name: str, tmp_path: Path) -> None:
    expected = ["2020-01-01", "2021-01-01T00:00:00"]
    assert texts(tmp_path, name, as_lines(*({"text": text} for text in expected))) == expected


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (
            as_lines({"text": "a"}) + b'\n{"text": "b"\n',
            3,
            "must be JSON, got \"Expecting ',' delimiter\" at column 13;",
        ),
        (b'{"text": "a"} {"text": "b"}\n', 1, "must be JSON, got 'Extra data' at column 15; fix the line"),
        (as_lines({"text": "a"}, {"body": "b"}), 2, "must have the column 'text' (corpus.pretrain.text_column), got "),
        (as_lines({"body\n": "b"}), 1, "must have the column 'text' (corpus.pretrain.text_column), got ['body\\n'];"),
        (as_lines(["text"]), 1, "must have the column 'text' (corpus.pretrain.text_column), got ['text'];"),
        (as_lines({"text": "a"}, 3), 2, "must have the column 'text' (corpus.pretrain.text_column), got 3;"),
        (as_lines({}), 1, "must have the column 'text' (corpus.pretrain.text_column), got [];"),
        (as_lines({str(n): n for n in range(9999)}), 1, "must have the column 'text' (corpus.pretrain.text_column), "),
        (as_lines({"text": ["b"] * 9999}), 1, "column 'text' must hold text, got ['b', 'b', "),
    ],
    ids=["cut", "two", "other column", "odd name", "list", "number", "empty", "many", "not text"],
)
def test_a_line_that_is_no_row_is_refused_with_its_number(
    content: bytes, line: int, message: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, "a.jsonl", content).startswith(f"data/raw/a.jsonl: line {line}: {message}")


NESTED = b'{"text": "a", "tree": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"


@pytest.mark.parametrize(("name", "line"), [("a.jsonl", 2), ("a.json", 2)])
def test_json_that_is_nested_too_deep_is_one_line(name: str, line: int, tmp_path: Path) -> None:
    message = refusal(tmp_path, name, b'{"text": "a"}\n' + NESTED)
    assert message.startswith(f"data/raw/{name}: line {line}: must not be nested deeper than Python's JSON reader goes")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_an_integer_of_any_length_may_stand_in_another_key_but_not_for_the_text(name: str, tmp_path: Path) -> None:
    rows = b'{"text": "a", "id": ' + b"9" * 5000 + b'}\n{"text": "b", "id": -1}\n'
    assert texts(tmp_path, name, rows) == ["a", "b"]
    assert "column 'text' must hold text, got inf;" in refusal(tmp_path, name, b'{"text": ' + b"9" * 5000 + b"}")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'\n{"text":"a"}\n\n  \n{"text":"b"}', ["a", "b"]),
        ("a.jsonl", b'\xef\xbb\xbf{"text":"a"}\r\n{"text":"b"}\r\n', ["a", "b"]),
        ("a.jsonl", '{"text":"a\u2028b\x85"}\n'.encode(), ["a\u2028b\x85"]),
        ("a.jsonl", b'{"text":"a\\ud800b"}\n', ["a\ufffdb"]),
        ("a.json", b'{"text":"a"}\n{"text":"b"}\n', ["a", "b"]),
        ("a.json", b'\n [{"text": "a"},\n  {"text": "b"}]\n', ["a", "b"]),
        ("a.json", b'{\n  "text": "a",\n  "n": {"m": 1}\n}\n', ["a"]),
        ("a.ndjson", b'{"text":"a"}\n{"text":"b"}\n', ["a", "b"]),
        ("a.json", b'{\n "text": "a"\n}\n{\n "text": "b"\n}\n', ["a", "b"]),
        ("a.json", b'{"text":"a"}{"text":"b"} {"text":"c"}', ["a", "b", "c"]),
        ("a.json", b'[{"text":"a"}]\n[]\n[{"text":"b"}]', ["a", "b"]),
    ],
    ids=[
        "blank lines",
        "Windows",
        "odd line ends",
        "half a pair",
        "lines",
        "list",
        "one row",
        "ndjson",
        "indented objects",
        "objects in a line",
        "lists",
    ],
)
def test_json_in_all_its_layouts(name: str, content: bytes, expected: list[str], tmp_path: Path) -> None:
    assert texts(tmp_path, name, content) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n{"text":"a"},\n{"text": "b"\n]', "line 4: must be JSON, got "),
        (b'[{"text": "a"}, {"body": "b"}]', "row 1: must have the column 'text' "),
        (b'[{"text": "a"} {"text": "b"}]', "line 1: must be JSON, got \"Expecting ',' delimiter\" at column 16"),
        (b'[{"text": "a"},\n{"text": "b"}\n', "line 3: must be JSON, got "),
        (b'{\n"text": "a"\n}\n{\n"text": "b', "line 5: must be JSON, got "),
        (b'{"text": "a"}\n{"text" "b"}\n' + b'{"text": "c"}\n' * 100_000, "line 2: must be JSON, got "),
        (b'[{"text": "a"}, "b"]', "row 1: must have the column 'text' (corpus.pretrain.text_column), got 'b'; "),
    ],
)
def test_a_broken_list_of_rows_is_refused_with_the_place(content: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, "a.json", content).startswith(f"data/raw/a.json: {message}")


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_compressed_list_of_rows_is_read(kind: str, tmp_path: Path) -> None:
    content = COMPRESSORS[kind](b'[{"text": "a"}, {"text": "b"}]')
    assert texts(tmp_path, f"a.json.{kind}", content) == ["a", "b"]


TYPES = {
    "string": pa.string(),
    "large string": pa.large_string(),
    "string view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}


@pytest.mark.parametrize("kind", TYPES)
def test_parquet_text_of_every_type_is_read_beside_other_columns(kind: str, tmp_path: Path) -> None:
    expected = [f"row {n % 7}" for n in range(1000)]
    content = as_parquet(
        {"n": range(1000), "a.b": pa.array(expected).cast(TYPES[kind]), "a": [{"b": 1}] * 1000}, row_group_size=300
    )
    assert texts(tmp_path, "a.parquet", content, column="a.b") == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [{"a": "b"}]}, "row 0: column 'text' must hold text, got {'a': 'b'}; "),
        ({"x": [1], "y": ["a"]}, "row 0: must have the column 'text' (corpus.pretrain.text_column), got ['x', 'y']; "),
    ],
    ids=["nested", "other columns"],
)
def test_a_parquet_row_without_text_is_refused(columns: dict[str, object], message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, "a.parquet", as_parquet(columns)).startswith(f"data/raw/a.parquet: {message}")


def test_a_parquet_file_without_rows_gives_nothing(tmp_path: Path) -> None:
    assert texts(tmp_path, "a.parquet", as_parquet({"text": pa.array([], pa.string())})) == []


READ = """
import re, sys
from pathlib import Path
from smollm.corpus import tables
path = Path(sys.argv[1])
sum(1 for _ in tables.rows(path, path.name, "text"))
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that a process had is asked of Linux")
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_memory_does_not_grow_with_a_table(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    used = []
    for count in (10_000, 60_000):  # from the first on, what is read at once is there
        rows = [f"{n * 7919} " * 200 for n in range(count)]
        if name == "a.parquet":
            parquet.write_table(pa.table({"text": rows}), path)
        else:
            lines = ["text,n"] if name == "a.csv" else []
            lines += [f"{row},1" if name == "a.csv" else json.dumps({"text": row}) for row in rows]
            path.write_text(f"[{','.join(lines)}]" if name == "a.json" else "\n".join(lines))
        done = subprocess.run(
            [sys.executable, "-c", READ, path],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        used.append(int(done.stdout) / 1000)
    assert used[1] - used[0] < 20, "MB, of 80 more that are read"
