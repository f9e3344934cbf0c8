"""Reads tables of text row by row: JSON, CSV and Parquet. A row is a mapping of column names to values."""

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import NoReturn, TextIO

from smollm.corpus import text_files
from smollm.errors import CorpusError

Row = tuple[str, object]
"""The row's place in the file, for messages, and the row (in a JSON file any value can stand there)."""

SUFFIXES = (".jsonl", ".jsonlines", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

_DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}
"""Tried in this order, by suffix."""

_DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}

_BATCH_ROWS = 100
"""Rows of a Parquet file that are in memory at once."""

_JSON_CHUNK = 1 << 20
"""Characters of a JSON file that are read at once."""


def rows(path: Path, name: str, column: str) -> Iterator[Row]:
    """Yield the rows of a table.

    Args:
        path: the file; its suffix tells the format.
        name: of the file, for messages.
        column: the one that is needed, see `row_text.value_of`; of a Parquet file only this one is read.

    Raises:
        CorpusError: a row cannot be read.
        Exception: the file cannot be read; the libraries' errors have no common base.
    """
    suffix = text_files.inner_suffix(path)
    if suffix == ".parquet":
        yield from _parquet(path, column)
        return
    with text_files.open_lines(path) as file:
        if suffix in _DELIMITERS:
            yield from _csv(file, name, column, _DELIMITERS[suffix])
        elif suffix == ".json":
            yield from _JsonReader(file, name).rows()
        else:
            yield from _json_lines(file, name)


def _integer(digits: str) -> int | Decimal:
    """An integer of JSON; a Decimal for one so long that Python refuses to convert it to int."""
    return int(digits) if len(digits) < 4000 else Decimal(digits)


_JSON = json.JSONDecoder(parse_int=_integer)


def _refuse_json(
    name: str, line: int, error: json.JSONDecodeError | RecursionError, fix: str = "fix the line"
) -> NoReturn:
    if isinstance(error, json.JSONDecodeError):
        raise CorpusError(
            f"{name}: line {line}: must be JSON, got {error.msg!r} at column {error.colno}; {fix}"
        ) from None
    raise CorpusError(
        f"{name}: line {line}: nested too deep for Python's JSON reader (about 1,000 levels); take the nested value "
        "out of the row"
    ) from None


def _json_lines(file: TextIO, name: str) -> Iterator[Row]:
    """One row a line."""
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        try:
            yield f"line {number}", _JSON.decode(line.rstrip())
        except (json.JSONDecodeError, RecursionError) as error:
            _refuse_json(name, number, error, "fix the line, or name the file .json if its rows are not one a line")


class _JsonReader:
    """Reads a JSON file that holds rows one after another, which may span lines, or one list of rows.

    Memory holds a chunk of the file, or the longest row.
    """

    _WHITE_SPACE = re.compile(r"[ \t\n\r]*")

    def __init__(self, file: TextIO, name: str) -> None:
        self._file, self._name = file, name
        self._text, self._position, self._lines_dropped = "", 0, 0

    def rows(self) -> Iterator[Row]:
        numbers = itertools.count()
        while character := self._next_character():
            if character != "[":
                yield f"row {next(numbers)}", self._value()
                continue
            self._position += 1
            while self._next_character() != "]":
                yield f"row {next(numbers)}", self._value()
                if (character := self._next_character()) == ",":
                    self._position += 1
                elif character != "]":
                    self._refuse(json.JSONDecodeError("Expecting ',' delimiter", self._text, self._position))
            self._position += 1

    def _next_character(self) -> str:
        """The next character that is not white space, which is not consumed; empty at the end of the file."""
        while True:
            match = self._WHITE_SPACE.match(self._text, self._position)
            assert match
            self._position = match.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_more():
                return ""

    def _value(self) -> object:
        while True:
            try:
                value, end = _JSON.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16
                if not (is_cut_off and self._read_more()):
                    self._refuse(error)
            except RecursionError as error:
                self._refuse(error)
            else:
                self._position = end
                return value

    def _read_more(self) -> bool:
        """Read on, and drop what was consumed; False at the end of the file."""
        more = self._file.read(max(_JSON_CHUNK, len(self._text) - self._position))
        if more:
            self._lines_dropped += self._text.count("\n", 0, self._position)
            self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)

    def _refuse(self, error: json.JSONDecodeError | RecursionError) -> NoReturn:
        place = error.pos if isinstance(error, json.JSONDecodeError) else self._position
        _refuse_json(self._name, 1 + self._lines_dropped + self._text.count("\n", 0, place), error)


def _csv(file: TextIO, name: str, column: str, delimiters: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a document may have any length
    head: list[str] = []  # up to the header
    for line in file:
        head.append(line)
        if not line.isspace():
            break
    delimiter = _delimiter(head[-1], column, delimiters) if head else delimiters[0]
    reader = csv.reader(itertools.chain(head, file), strict=True, delimiter=delimiter)
    header: list[str] = []
    places: dict[str, int] = {}
    end = 0
    try:
        for cells in reader:
            begin, end = end + 1, reader.line_num
            if not cells or (len(cells) == 1 and cells[0].isspace()):  # a blank line
                continue
            if not header:
                header, places = cells, {cell: cells.index(cell) for cell in cells}
                continue
            if len(cells) > len(header):
                raise CorpusError(
                    f"{name}: line {begin}: must have no more cells than the header, which has {len(header)}, got "
                    f"{len(cells)}; put a cell that holds a {_DELIMITER_NAMES[delimiter]} in quotes, or take the "
                    "surplus out"
                )
            yield f"line {begin}", {cell: cells[place] for cell, place in places.items() if place < len(cells)}
    except csv.Error as error:
        raise CorpusError(f"{name}: line {end + 1}: must be CSV, got {error}; fix its quotes") from None


def _delimiter(header: str, column: str, delimiters: str) -> str:
    """The first delimiter by which the header has the column, else the first."""
    for delimiter in delimiters:
        with suppress(csv.Error):
            if column in next(csv.reader([header], strict=True, delimiter=delimiter)):
                return delimiter
    return delimiters[0]


def _parquet(path: Path, column: str) -> Iterator[Row]:
    import pyarrow  # slow to import, and needed by this format alone
    from pyarrow.parquet import ParquetFile

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # Arrow's own keeps half of what it has read
    # without buffers of its own it reads a row group's column as a whole
    with path.open("rb") as file, ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
        leaves = [table.schema.column(index).path for index in range(len(table.schema))]
        is_there = column in table.schema_arrow.names or any(f"{leaf}.".startswith(f"{column}.") for leaf in leaves)
        batches = table.iter_batches(_BATCH_ROWS, columns=[column] if is_there else None)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"row {index}", row) for index, row in enumerate(rows))
