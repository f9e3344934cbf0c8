"""The text of a table's row: columns, nested keys, bytes, nulls, chats."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.corpus import files_of, put_raw

from smollm.errors import CorpusError

CHAT = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2\n{}"}]
TEMPLATE = "<|im_start|>{role}\n{content}<|im_end|>\n"
AS_TEXT = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n2\n{}<|im_end|>\n"


def put_rows(workspace: Path, name: str, rows: list[dict[str, object]]) -> None:
    """Write rows as JSON lines or Parquet."""
    content = io.BytesIO()
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), content)
    else:
        content.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    put_raw(workspace, name, content.getvalue())


def refusal(workspace: Path, text_column: str = "text", template: str | None = None) -> str:
    with pytest.raises(CorpusError) as caught:
        list(files_of(workspace, text_column=text_column, template=template).documents())
    message = str(caught.value)
    assert message.isprintable()  # one line
    return message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_null_rows_are_left_out_and_counted(name: str, tmp_path: Path) -> None:
    put_rows(tmp_path, name, [{"text": None if n % 40 == 7 else f"row {n}"} for n in range(400)])
    source = files_of(tmp_path)
    documents = list(source.documents())
    assert len(documents) == 390
    assert documents[7].key == f"data/raw/{name}#8"
    assert (source.left_out.null, source.left_out.blank) == (10, 0)
    assert len(list(source.documents())) == 390
    assert source.left_out.null == 10, "of the last reading alone"


def test_a_table_with_many_nulls_is_refused_at_its_end(tmp_path: Path) -> None:
    put_rows(tmp_path, "a.jsonl", [{"text": "x" if n % 10 else None} for n in range(400)])
    assert refusal(tmp_path) == (
        "data/raw/a.jsonl: column 'text' must be null in at most 5.0% of the rows (corpus.max_null_fraction), got 40 "
        "nulls in all 400 rows; name another column, fix the table, or raise that setting"
    )


def test_a_long_table_with_many_nulls_is_refused_before_its_end(tmp_path: Path) -> None:
    put_rows(tmp_path, "a.jsonl", [{"text": "x" if n % 10 else None} for n in range(30_000)])
    assert "got 501 nulls in the first 5,001 rows;" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_dots_lead_to_a_nested_key(name: str, tmp_path: Path) -> None:
    put_rows(tmp_path, name, [{"id": n, "data": {"text": f"row {n}", "lang": "en"}} for n in range(3)])
    source = files_of(tmp_path, text_column="data.text")
    assert [document.text for document in source.documents()] == ["row 0", "row 1", "row 2"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_nested_key_that_is_not_there_is_refused_with_the_columns(name: str, tmp_path: Path) -> None:
    put_rows(tmp_path, name, [{"id": 1, "data": {"body": "x"}}])
    assert "must have the column 'data.text' (corpus.pretrain.text_column), got ['id', 'data'];" in refusal(
        tmp_path, "data.text"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_row_whose_outer_key_is_null_is_null(name: str, tmp_path: Path) -> None:
    put_rows(tmp_path, name, [{"data": {"text": "x"}} for _ in range(30)] + [{"data": None}])
    source = files_of(tmp_path, text_column="data.text")
    assert len(list(source.documents())) == 30
    assert source.left_out.null == 1


def test_bytes_of_a_parquet_column_are_utf8_or_refused(tmp_path: Path) -> None:
    put_rows(tmp_path, "a.parquet", [{"text": "héllo".encode()}, {"text": b"plain"}])
    assert [document.text for document in files_of(tmp_path).documents()] == ["héllo", "plain"]
    put_rows(tmp_path, "a.parquet", [{"text": b"plain"}, {"text": b"caf\xe9"}])
    assert refusal(tmp_path) == (
        "data/raw/a.parquet: row 1: column 'text' must hold UTF-8, got byte 0xe9 at its byte 3; "
        "convert it, or name another column"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_chat_becomes_text_by_the_template(name: str, tmp_path: Path) -> None:
    put_rows(tmp_path, name, [{"messages": CHAT, "id": 1}, {"messages": CHAT[:1], "id": 2}])
    source = files_of(tmp_path, text_column="messages", template=TEMPLATE)
    first, second = (document.text for document in source.documents())
    assert first == AS_TEXT
    assert first.startswith(second)


def test_a_chat_without_a_template_is_refused_with_its_keys(tmp_path: Path) -> None:
    put_rows(tmp_path, "a.jsonl", [{"messages": CHAT}])
    assert refusal(tmp_path, "messages") == (
        "data/raw/a.jsonl: line 1: column 'messages' must hold text, got a list of messages with ['role', 'content']; "
        r'say in corpus.pretrain.template how a message becomes text, e.g. "{role}: {content}\n"'
    )


@pytest.mark.parametrize("message", [{"from": "human", "value": "x"}, {"role": "user", "content": None}])
def test_a_message_without_a_key_of_the_template_is_refused(message: dict[str, object], tmp_path: Path) -> None:
    put_rows(tmp_path, "a.jsonl", [{"messages": [*CHAT, message]}])
    line = refusal(tmp_path, "messages", TEMPLATE)
    assert line.startswith("data/raw/a.jsonl: line 1: each message of column 'messages' must have a text ")
    assert line.endswith(f"(corpus.pretrain.template), got {message!r}; fix the template or the row")
