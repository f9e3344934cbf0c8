"""JSON files and JSON lines: which text a row gives, and how a broken one is refused."""

import json
from pathlib import Path

import pytest
from support.corpus import COMPRESSORS, table_refusal, table_texts


def as_lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


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
    assert table_texts(tmp_path, "a.jsonl", as_lines(*rows)) == ["a", long, "b"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_texts_are_not_taken_for_dates(name: str, tmp_path: Path) -> None:
    expected = ["2020-01-01", "2021-01-01T00:00:00"]
    assert table_texts(tmp_path, name, as_lines(*({"text": text} for text in expected))) == expected


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
    assert table_refusal(tmp_path, "a.jsonl", content).startswith(f"data/raw/a.jsonl: line {line}: {message}")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonlines", "a.ndjson"])
@pytest.mark.parametrize("content", [b'{\n "text": "a"\n}\n', b'{"text": "a"} {"text": "b"}\n'])
def test_rows_that_are_not_one_a_line_are_told_which_name_reads_them(name: str, content: bytes, tmp_path: Path) -> None:
    fix = "; fix the line, or name the file .json if its rows are not one a line"
    assert table_refusal(tmp_path, name, content).endswith(fix)
    assert table_texts(tmp_path, "a.json", content)[0] == "a"


NESTED = b'{"text": "a", "tree": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"


@pytest.mark.parametrize(("name", "line"), [("a.jsonl", 2), ("a.json", 2)])
def test_json_that_is_nested_too_deep_is_one_line(name: str, line: int, tmp_path: Path) -> None:
    message = table_refusal(tmp_path, name, b'{"text": "a"}\n' + NESTED)
    assert message.startswith(f"data/raw/{name}: line {line}: nested too deep for Python's JSON reader")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_an_integer_of_any_length_may_stand_in_another_key_but_not_for_the_text(name: str, tmp_path: Path) -> None:
    rows = b'{"text": "a", "id": ' + b"9" * 5000 + b'}\n{"text": "b", "id": -1}\n'
    assert table_texts(tmp_path, name, rows) == ["a", "b"]
    refusal = table_refusal(tmp_path, name, b'{"text": ' + b"9" * 5000 + b"}")
    assert "column 'text' must hold text, got Decimal('9999" in refusal


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
        ("a.jsonlines", b'{"text":"a"}\n{"text":"b"}\n', ["a", "b"]),
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
        "jsonlines",
        "indented objects",
        "objects in a line",
        "lists",
    ],
)
def test_json_in_all_its_layouts(name: str, content: bytes, expected: list[str], tmp_path: Path) -> None:
    assert table_texts(tmp_path, name, content) == expected


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
    assert table_refusal(tmp_path, "a.json", content).startswith(f"data/raw/a.json: {message}")


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_compressed_list_of_rows_is_read(kind: str, tmp_path: Path) -> None:
    content = COMPRESSORS[kind](b'[{"text": "a"}, {"text": "b"}]')
    assert table_texts(tmp_path, f"a.json.{kind}", content) == ["a", "b"]
