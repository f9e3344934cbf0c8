"""CSV and TSV files: which text a row gives, and how a broken one is refused."""

import csv
import io
from pathlib import Path

import pytest
from support.corpus import files_of, put_raw, table_refusal, table_texts


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
    message = table_refusal(tmp_path, "a.csv", content)
    assert message.startswith(f"data/raw/a.csv: line {line}: must have no more cells than the header, which has ")
    assert f"got {cells}; put a cell that holds a comma in quotes" in message


def test_a_csv_table_where_every_row_has_a_surplus_comma_is_refused(tmp_path: Path) -> None:
    message = table_refusal(tmp_path, "a.csv", b"text,label\nhello,1,\nfoo,2,\n")
    assert "a.csv: line 2: must have no more cells" in message


def test_a_csv_row_without_the_column_is_refused_one_without_others_is_not(tmp_path: Path) -> None:
    assert table_texts(tmp_path, "a.csv", b"text,label\nhello\nfoo,2\n") == ["hello", "foo"]
    message = table_refusal(tmp_path, "a.csv", b"label,text\n1,hello\n2\n")
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
    assert table_refusal(tmp_path, "a.csv", content) == (
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
    assert table_texts(tmp_path, "a.csv", content) == expected


def test_what_pythons_csv_writes_is_read(tmp_path: Path) -> None:
    expected = ['"', '""', ",", "\n,\n", '"a",b\r\n', "a\nb", "é😀"]
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerows([["n", "text"], *([n, text] for n, text in enumerate(expected))])
    assert table_texts(tmp_path, "a.csv", content.getvalue().encode()) == expected


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
    assert "put a cell that holds a semicolon in quotes" in table_refusal(tmp_path, "a.csv", b"id;text\n1;a;b\n")
