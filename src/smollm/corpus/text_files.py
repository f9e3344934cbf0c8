"""Reads text files, compressed or not, one chunk at a time, and refuses files that cannot be read as UTF-8 text."""

import codecs
import hashlib
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import zstandard

from smollm.errors import CorpusError

_CHUNK_BYTES = 1 << 20

_COMPRESSED_CHUNK_BYTES = 1 << 14
"""Read at once of a zstd file; bounds what a chunk can expand to."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class _ZstdFile(io.RawIOBase):
    """Decompresses zstd frames one after another, of any window size; pyarrow refuses windows above 128 MiB.

    Raises:
        EOFError: the last frame is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: Any = None
        self._compressed = self._text = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            self._compressed = self._compressed or self._file.read(_COMPRESSED_CHUNK_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is cut off")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            self._text = self._frame.decompress(self._compressed)
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._text))
        buffer[:count], self._text = self._text[:count], self._text[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_with_arrow(path: Path, compression: str) -> Any:
    import pyarrow  # slow to import

    return pyarrow.input_stream(path, compression=compression)


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": lambda path: _open_with_arrow(path, "gzip"),
    ".bz2": lambda path: _open_with_arrow(path, "bz2"),
    ".zst": lambda path: io.BufferedReader(_ZstdFile(path), _CHUNK_BYTES),
    ".xz": lzma.open,
}
"""Opens a compressed file, by its last suffix; each opener raises where the file is cut off."""

READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError)
"""Raised by the openers and by reading from them."""


@dataclass(frozen=True)
class FileState:
    """Size, modification time and inode of a file: equal as long as nothing writes to it."""

    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "FileState | None":
        """The state now; None if the file does not exist."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def check_unchanged(before: FileState | None, path: Path, name: str) -> None:
    """Refuse a file whose state is no longer the one it had `before`.

    Raises:
        CorpusError: the file was written to, replaced or removed.
    """
    if before is None or FileState.of(path) != before:
        raise CorpusError(f"{name}: changed while it was read; run again once nothing writes to it")


def check_is_content(path: Path, name: str) -> None:
    """Refuse a Git LFS pointer, the short text that stands for a file that was not downloaded.

    Raises:
        CorpusError: the file is a pointer, or cannot be opened.
    """
    with readable(name), path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise CorpusError(
            f"{name}: must hold the content itself, got a Git LFS pointer to it; run `git lfs pull`, then `dvc repro`"
        )


@dataclass(frozen=True)
class TextSummary:
    """Size and digest of a file's text."""

    size: int
    """Bytes of UTF-8."""
    sha256: str
    is_blank: bool
    """Whether the text is empty or white space only."""


def inner_suffix(path: Path) -> str:
    """The suffix that tells the format, below that of a compression: ``.jsonl`` for ``a.jsonl.gz``."""
    inner = path.with_suffix("") if path.suffix.lower() in OPENERS else path
    return inner.suffix.lower()


def summarize(path: Path, name: str) -> TextSummary:
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
    return TextSummary(size, digest.hexdigest(), is_blank)


def chunks(path: Path, name: str) -> Iterator[str]:
    """Yield the text of a file in chunks.

    Raises:
        CorpusError: the file is not UTF-8 (the message names the byte), or cannot be read or decompressed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with readable(name), open_bytes(path) as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                byte = position - pending + error.start
                is_utf_16 = byte == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                raise CorpusError(
                    f"{name}: must be UTF-8, got {error.object[error.start]:#04x} at byte {byte}; "
                    f"convert it, e.g. iconv -f {'utf-16' if is_utf_16 else 'windows-1252'} -t utf-8"
                ) from None
            if text:
                yield text
            if not chunk:
                return
            position += len(chunk)


def open_lines(path: Path) -> TextIO:
    """Open a UTF-8 file for reading line by line; lines keep their line ends, a byte order mark is dropped."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading; what a compressed file holds is decompressed."""
    opener = OPENERS.get(path.suffix.lower())
    file: BinaryIO = opener(path) if opener else path.open("rb")
    return file


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn an error of reading the file `name` into a CorpusError."""
    try:
        yield
    except READ_ERRORS as error:
        raise CorpusError(
            f"{name}: must be readable to its end, got {type(error).__name__}: {error}; copy or compress it again"
        ) from None
