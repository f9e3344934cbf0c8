"""Tables of text, JSON lines, CSV or Parquet, read row by row; nothing is made of a value but what it says."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pyarrow
from pyarrow.parquet import ParquetFile

from smollm.corpus import text_files
from smollm.errors import CorpusError

Row = tuple[str, object]
"""Where it is in the file, and its values by column (of a JSON file, whatever stands there)."""

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")

_BATCH = 100
"""Rows of a Parquet file that are in memory at once."""


def rows(path: Path, name: str, column: str) -> Iterator[Row]:
    """The rows of a table.

    Args:
        name: of the file, for messages.
        column: the one that is needed; a Parquet file that has it gives no other.

    Raises:
        CorpusError: a line cannot be read.
        Exception: the file cannot be read; the libraries' errors have no common base.
    """
    kind = text_files.ending(path)
    if kind == ".parquet":
        yield from _parquet(path, column)
        return
    with text_files.lines(path) as file:
        yield from _csv(file, name) if kind == ".csv" else _json(file, name, is_lines=kind == ".jsonl")


def _json(file: TextIO, name: str, is_lines: bool) -> Iterator[Row]:
    """A row a line, else (by the first line) one list of rows, or one row, over many lines."""
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        is_lines = is_lines or (line.lstrip().startswith("{") and line.rstrip().endswith("}"))
        try:
            value = json.loads((line if is_lines else line + file.read()).rstrip())
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{name}: line {number + error.lineno - 1}: must be JSON, got {error.msg!r} at column {error.colno}; "
                "mend the line"
            ) from None
        if is_lines:
            yield f"line {number}", value
        else:
            found = value if isinstance(value, list) else [value]
            yield from ((f"row {index}", row) for index, row in enumerate(found))


def _csv(file: TextIO, name: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a document may have any length
    reader = csv.reader(file, strict=True)
    header: list[str] = []
    places: dict[str, int] = {}
    end = 0
    try:
        for cells in reader:
            begin, end = end + 1, reader.line_num
            if not cells or (len(cells) == 1 and cells[0].isspace()):  # a blank line
                continue
            if not header:
                header, places = cells, {column: cells.index(column) for column in cells}
                continue
            if len(cells) > len(header):
                raise CorpusError(
                    f"{name}: line {begin}: must have no more cells than the header, which has {len(header)}, got "
                    f"{len(cells)}; put a cell that holds a comma in quotes, or take the surplus out"
                )
            yield f"line {begin}", {column: cells[place] for column, place in places.items() if place < len(cells)}
    except csv.Error as error:
        raise CorpusError(f"{name}: line {end + 1}: must be CSV, got {error}; mend its quotes") from None


def _parquet(path: Path, column: str) -> Iterator[Row]:
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # Arrow's own keeps half of what it has read
    with ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:  # else it reads a row group's column whole
        columns = [column] if column in file.schema_arrow.names else None
        rows = (row for batch in file.iter_batches(_BATCH, columns=columns) for row in batch.to_pylist())
        yield from ((f"row {index}", row) for index, row in enumerate(rows))
