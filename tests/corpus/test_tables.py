"""Parquet files: which text a row gives; and the memory that tables of all formats take."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.corpus import table_refusal, table_texts


def as_parquet(columns: dict[str, object], **options: object) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, **options)
    return file.getvalue()


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
    assert table_texts(tmp_path, "a.parquet", content, column="a.b") == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [{"a": "b"}]}, "row 0: column 'text' must hold text, got {'a': 'b'}; "),
        ({"x": [1], "y": ["a"]}, "row 0: must have the column 'text' (corpus.pretrain.text_column), got ['x', 'y']; "),
    ],
    ids=["nested", "other columns"],
)
def test_a_parquet_row_without_text_is_refused(columns: dict[str, object], message: str, tmp_path: Path) -> None:
    assert table_refusal(tmp_path, "a.parquet", as_parquet(columns)).startswith(f"data/raw/a.parquet: {message}")


def test_a_parquet_file_without_rows_gives_nothing(tmp_path: Path) -> None:
    assert table_texts(tmp_path, "a.parquet", as_parquet({"text": pa.array([], pa.string())})) == []


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
