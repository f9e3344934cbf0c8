"""One document of a corpus, and how a long one is read in parts that are encoded one by one."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

PART = 64_000
"""Characters of a document that are in memory at once."""

_PLACES = (re.compile(r"[^\W\d_](?=\s)"), re.compile(r"\S\n(?=[^\s/])"))
"""Where a part may end: after a letter before white space, else after a line before the next."""


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

    Encoded one by one, the parts then give the ids of the whole. That is between a letter and white space, or, in a
    part without such a place, between two lines. Where there is neither the part is cut all the same, and the
    ids around that place may be others.

    Args:
        chunks: a text, in pieces of any length.
        most: characters of a part.
    """
    pending = ""
    for chunk in chunks:
        pending += chunk
        start = 0
        while len(pending) - start > most:
            end = _place(pending, start, start + most)
            yield pending[start:end]
            start = end
        pending = pending[start:]
    if pending:
        yield pending


def _place(text: str, start: int, end: int) -> int:
    """The last place to cut `text` after `start` and not after `end`."""
    for pattern in _PLACES:
        for begin in (max(start, end - 10_000), start):  # nearly always near the end
            found = [match.end() for match in pattern.finditer(text, begin, end + 1) if match.end() <= end]
            if found:
                return found[-1]
    return end
