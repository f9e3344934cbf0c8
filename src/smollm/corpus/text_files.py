"""Text files, compressed or not, read a little at a time."""

import codecs
import functools
import hashlib
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow

from smollm.errors import CorpusError

OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": functools.partial(pyarrow.input_stream, compression="gzip"),
    ".bz2": functools.partial(pyarrow.input_stream, compression="bz2"),
    ".zst": functools.partial(pyarrow.input_stream, compression="zstd"),
    ".xz": lzma.open,
}
"""What opens a compressed file, by its last ending; each notices one that was cut off."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class State:
    """By which a file that was written to is known again."""

    size: int
    modified: int
    number: int

    @classmethod
    def of(cls, path: Path) -> "State | None":
        """None where the file is gone."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def check_same(before: State | None, path: Path, name: str) -> None:
    """Refuse a file that was written to.

    Args:
        before: what the file was.

    Raises:
        CorpusError: the file is gone, is another one, or was written to.
    """
    if before is None or State.of(path) != before:
        raise CorpusError(
            f"{name}: must stay as it is while it is read, got a file that changed meanwhile; "
            "run again once nothing writes to it"
        )


@dataclass(frozen=True)
class Contents:
    """What a whole text file holds."""

    size: int
    """Bytes of UTF-8."""
    sha256: str
    is_blank: bool


def ending(path: Path) -> str:
    """The ending that says what a file holds, that of a compression taken off: ``.jsonl`` of ``a.jsonl.gz``."""
    inner = path.with_suffix("") if path.suffix.lower() in OPENERS else path
    return inner.suffix.lower()


def contents(path: Path, name: str) -> Contents:
    """Read a text file to its end.

    Raises:
        CorpusError: as `chunks`.
    """
    digest, size, is_blank = hashlib.sha256(), 0, True
    for text in chunks(path, name):
        content = text.encode()
        digest.update(content)
        size += len(content)
        is_blank = is_blank and text.isspace()
    return Contents(size, digest.hexdigest(), is_blank)


def chunks(path: Path, name: str) -> Iterator[str]:
    """The text of a file in pieces.

    Raises:
        CorpusError: it is not UTF-8, and at which byte, or it cannot be read or decompressed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with _readable(name), _open(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                byte = position - pending + error.start
                is_utf_16 = byte == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                raise CorpusError(
                    f"{name}: must be UTF-8, got another byte ({error.object[error.start]:#04x}) at byte {byte}; "
                    f"convert it, e.g. iconv -f {'utf-16' if is_utf_16 else 'windows-1252'} -t utf-8"
                ) from None
            if text:
                yield text
            if not chunk:
                return
            position += len(chunk)


def lines(path: Path) -> TextIO:
    """Open a file of UTF-8, to be read line by line; the lines keep their ends, a byte order mark is left out."""
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="")


def _open(path: Path) -> Any:
    opener = OPENERS.get(path.suffix.lower())
    return opener(path) if opener else path.open("rb")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise CorpusError(
            f"{name}: must be readable to its end, got {type(error).__name__}: {error}; copy or compress it again"
        ) from None
