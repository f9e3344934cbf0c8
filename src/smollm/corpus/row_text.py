"""Gets the text of a row of a table or hub dataset: a column, a nested key, or chat messages put in a template."""

from dataclasses import dataclass

from smollm.config.corpus import template_keys
from smollm.errors import CorpusError

_ROWS_BEFORE_REFUSAL = 10_000
"""After this many rows the share of nulls is checked at each null, not only at the end of the table."""

MISSING = object()
"""What `value_of` returns where the row has no such column."""


@dataclass(frozen=True)
class RowFormat:
    """Where the text of a row is, by the settings of a stage."""

    stage: str
    text_column: str
    template: str | None
    max_null_fraction: float

    def text(self, row: object, place: str) -> str | None:
        """The text of a row, None for null.

        Args:
            row: a mapping of column names to values, if the file is right.
            place: file and row, for messages.

        Raises:
            CorpusError: there is no such column, or no text in it.
        """
        value = value_of(row, self.text_column)
        if value is MISSING:
            columns = list(row) if isinstance(row, dict) else row
            raise CorpusError(
                f"{place}: must have the column {self.text_column!r} (corpus.{self.stage}.text_column), "
                f"got {_short(columns)}; name the one with the text or fix the row"
            )
        if isinstance(value, bytes):
            return self._decoded(value, place)
        if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
            return self._chat(value, place)
        if value is not None and not isinstance(value, str):
            raise CorpusError(
                f"{place}: column {self.text_column!r} must hold text, got {_short(value)}; "
                "name another column or fix the row"
            )
        return value

    def check_nulls(self, nulls: int, rows: int, is_end: bool, name: str) -> None:
        """Refuse a table with more nulls than `corpus.max_null_fraction` allows, at its end or before.

        Raises:
            CorpusError: there are more.
        """
        if nulls > self.max_null_fraction * (rows if is_end else max(rows, _ROWS_BEFORE_REFUSAL)):
            raise CorpusError(
                f"{name}: column {self.text_column!r} must be null in at most {self.max_null_fraction:.1%} of the rows "
                f"(corpus.max_null_fraction), got {nulls:,} nulls in {'all' if is_end else 'the first'} {rows:,} rows; "
                "name another column, fix the table, or raise that setting"
            )

    def _decoded(self, value: bytes, place: str) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{place}: column {self.text_column!r} must hold UTF-8, got byte {value[error.start]:#04x} at its byte "
                f"{error.start}; convert it, or name another column"
            ) from None

    def _chat(self, messages: list[dict[str, object]], place: str) -> str:
        if self.template is None:
            raise CorpusError(
                f"{place}: column {self.text_column!r} must hold text, got a list of messages with "
                f"{_short(list(messages[0]))}; say in corpus.{self.stage}.template how a message becomes text, e.g. "
                r'"{role}: {content}\n"'
            )
        for message in messages:
            for key in template_keys(self.template):
                if not isinstance(message.get(key), str):
                    raise CorpusError(
                        f"{place}: each message of column {self.text_column!r} must have a text {key!r} "
                        f"(corpus.{self.stage}.template), got {_short(message)}; fix the template or the row"
                    )
        return "".join(self.template.format_map(message) for message in messages)


def value_of(row: object, column: str) -> object:
    """The value of a column; if there is none of that name, the nested value that a dotted name leads to."""
    if isinstance(row, dict) and column in row:
        return row[column]
    for key in column.split("."):
        if row is None:
            return None
        if not isinstance(row, dict) or key not in row:
            return MISSING
        row = row[key]
    return row


def _short(value: object) -> str:
    return repr(value)[:200]
