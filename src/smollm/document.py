"""One document of a corpus, and how a long one is read in parts that are encoded one by one."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

PART = 1_000_000
"""Characters of a document that are in memory at once."""

_BETWEEN_LINES = re.compile(r"\S\n(?=\S)")
_BETWEEN_WORDS = re.compile(r"\S(?= \S)")


@dataclass(frozen=True)
class Document:
    """A text, known by its digest before it is read."""

    key: str
    """Where it comes from; decides its side of the split, for code and for its documentation alike."""
    size: int
    """Bytes of UTF-8."""
    sha256: str
    is_blank: bool
    """Whether it is empty, or white space alone."""
    parts: Callable[[], Iterator[str]]
    """Reads the text, in parts of about `PART` characters at most."""

    @classmethod
    def of(cls, key: str, text: str) -> "Document":
        """A document whose text is there. Halves of UTF-16 pairs, which no text has, become U+FFFD."""
        try:
            content = text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            content = text.encode()
        return cls(
            key, len(content), hashlib.sha256(content).hexdigest(), not text or text.isspace(), lambda: in_parts([text])
        )

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.parts())


def in_parts(chunks: Iterable[str], most: int = PART) -> Iterator[str]:
    """Join `chunks` and cut them where every common pre-tokenizer cuts as well.

    Encoded one by one, the parts then give the ids of the whole. That is between two lines (``x⏎y``), or,
    in a part without one, before a single space. Where there is neither the part is cut all the same, and
    the ids around that place may be others.

    Args:
        chunks: a text, in pieces of any length.
        most: characters of a part.
    """
    pending = ""
    for chunk in chunks:
        pending += chunk
        while len(pending) > most:
            at = _place(pending, most)
            yield pending[:at]
            pending = pending[at:]
    if pending:
        yield pending


def _place(text: str, most: int) -> int:
    """The last place to cut `text` within its first `most` characters."""
    for pattern in (_BETWEEN_LINES, _BETWEEN_WORDS):
        for start in (max(0, most - 10_000), 0):  # nearly always near the end
            found = [match.end() for match in pattern.finditer(text, start, most + 1) if match.end() <= most]
            if found:
                return found[-1]
    return most
