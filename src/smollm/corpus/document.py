"""A document of the corpus, and how a long one is cut into parts that are read and encoded one by one."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

PART = 64_000
"""The largest number of characters in a part."""

_PLACES = (re.compile(r"[^\W\d_](?=\s)"), re.compile(r"\S\n(?=[^\s/])"))
"""Where a part may end: between a letter and white space, else between two lines."""


@dataclass(frozen=True)
class Document:
    """A text with its size and digest; the text itself is read only when it is needed."""

    key: str
    """Where it comes from, such as a path; decides its split. Code and its documentation share a key."""
    size: int
    """Bytes of UTF-8."""
    sha256: str
    is_blank: bool
    """Whether the text is empty or white space only."""
    parts: Callable[[], Iterator[str]]
    """Reads the text in parts of at most `PART` characters."""

    @classmethod
    def of(cls, key: str, text: str) -> "Document":
        """A document from a text in memory. Lone surrogates, which UTF-8 cannot encode, become U+FFFD."""
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
        """The whole text."""
        return "".join(self.parts())


def in_parts(chunks: Iterable[str], max_characters: int = PART) -> Iterator[str]:
    """Join `chunks` and cut the text into parts, where every common pre-tokenizer cuts it too.

    Encoded one by one, the parts therefore give the same ids as the whole text. The cut is between a letter and white
    space, else between two lines. If a part has neither, it is cut at its full length, and ids around the cut may
    differ.

    Args:
        chunks: a text in pieces of any length.
        max_characters: the largest number of characters in a part.
    """
    pending = ""
    for chunk in chunks:
        pending += chunk
        start = 0
        while len(pending) - start > max_characters:
            end = _cut_before(pending, start, start + max_characters)
            yield pending[start:end]
            start = end
        pending = pending[start:]
    if pending:
        yield pending


def _cut_before(text: str, start: int, end: int) -> int:
    """The last place to cut `text` after `start` and not after `end`."""
    for pattern in _PLACES:
        for begin in (max(start, end - 10_000), start):  # nearly always near the end
            ends = [match.end() for match in pattern.finditer(text, begin, end + 1) if match.end() <= end]
            if ends:
                return ends[-1]
    return end
