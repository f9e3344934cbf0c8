"""Writes the token files of one stage's text so that a kill loses only what came after the last save.

A save flushes all files to disk and records their sizes in ``progress.json``. The next start truncates the files to
these sizes, skips the documents that ``documents.tsv`` lists, and continues, even in the middle of a document.
"""

import csv
import io
import json
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from smollm.corpus.selection import Selected
from smollm.errors import CorpusError
from smollm.state.files import file_digest, write_json
from smollm.state.tokens import SPLITS, documents_path, manifest_path, offsets_path, tokens_path

_PROGRESS = "progress.json"

_HEADER = ("split", "bytes", "tokens", "sha256", "key")


@dataclass
class Progress:
    """What the last save brought to disk.

    The documents in the first `listed_bytes` of documents.tsv are complete. The other fields describe the document
    after them, if some of its parts are written.
    """

    tokenizer_sha256: str
    """Progress made with another tokenizer is not used."""
    listed_bytes: int = 0
    key: str = ""
    sha256: str = ""
    parts: int = 0
    """How many of its parts are written."""
    tokens: int = 0
    """In these parts."""
    text_bytes: int = 0
    """In these parts."""


class SplitWriter:
    """Writes the token file and the offsets file of one split."""

    def __init__(self, directory: Path, name: str, dtype: type[np.unsignedinteger]) -> None:
        self.tokens_path, self.offsets_path = tokens_path(directory, name), offsets_path(directory, name)
        self.dtype = dtype
        self.documents = self.bytes = self.tokens = 0
        """In finished documents."""
        self.pending_tokens = 0
        """In the document that is being written."""

    @property
    def sizes(self) -> dict[Path, int]:
        """How many bytes each file must have for what is counted."""
        tokens = (self.tokens + self.pending_tokens) * np.dtype(self.dtype).itemsize
        return {self.tokens_path: tokens, self.offsets_path: self.documents * np.dtype(np.uint64).itemsize}

    def open(self) -> None:
        """Open the files for appending, truncated to what is counted.

        Raises:
            CorpusError: a file is shorter than that.
        """
        self.files = [path.open("ab") for path in self.sizes]
        for file, (path, size) in zip(self.files, self.sizes.items(), strict=True):
            if file.tell() < size:
                raise CorpusError(
                    f"{path}: must have the {size:,} bytes that were written, got {file.tell():,}; remove "
                    f"{path.parent}, then run `dvc repro`"
                )
            file.truncate(size)
        self._tokens_file, self._offsets_file = self.files

    def write(self, ids: bytes) -> None:
        """Append tokens, given as the bytes of an array, to the document that is being written."""
        self._tokens_file.write(ids)
        self.pending_tokens += len(ids) // np.dtype(self.dtype).itemsize

    def finish_document(self, end_of_text_id: int, size: int) -> int:
        """End the document, which has `size` bytes of text; return how many tokens it has without end-of-text."""
        length = self.pending_tokens
        self.write(self.dtype(end_of_text_id).tobytes())
        self._offsets_file.write(np.uint64(self.tokens).tobytes())
        self.count(length, size)
        return length

    def count(self, tokens: int, size: int) -> None:
        """Count a finished document of `tokens` tokens, without end-of-text, and `size` bytes of text."""
        self.documents += 1
        self.bytes += size
        self.tokens += tokens + 1
        self.pending_tokens = 0

    def summary(self) -> dict[str, object]:
        """This split's part of the manifest."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": round(self.bytes / max(1, self.tokens - self.documents), 4),
            "sha256": file_digest(self.tokens_path, "sha256"),
        }


class TokenWriter:
    """Writes documents to the files of their splits, lists them in documents.tsv, and saves its progress.

    First call `skip_written`, then `write` for each part of the remaining documents.

    Attributes:
        splits: the writer of each split, by name.
        text_bytes: UTF-8 bytes of all text written, by earlier starts too.
        parts_written: how many parts of the current document are written.
    """

    def __init__(
        self, directory: Path, tokenizer_sha256: str, dtype: type[np.unsignedinteger], end_of_text_id: int
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        manifest_path(directory).unlink(missing_ok=True)
        self.list_path, self._progress_path = documents_path(directory), directory / _PROGRESS
        self.splits = {name: SplitWriter(directory, name, dtype) for name in SPLITS}
        self.text_bytes = self.parts_written = 0
        self._end_of_text_id = end_of_text_id
        self._progress = self._read_progress(tokenizer_sha256)

    def skip_written(self, documents: Iterator[Selected]) -> Iterator[Selected]:
        """Return the documents that are still to be written, and open the files for them.

        The first of these may be partly written: `parts_written` says how much. Where the text has changed since the
        last start, everything from the first changed document on is written again.

        Args:
            documents: all documents of the stage, in order.
        """
        saved, listed_bytes = self._progress, 0
        remaining: Iterator[Selected] = iter(())
        with closing(listed_documents(self.list_path, saved.listed_bytes)) as rows:
            for selected in documents:
                row, end = next(rows, (None, 0))
                if row is not None and is_row_of(row, selected):
                    self.splits[selected.split].count(int(row["tokens"]), selected.document.size)
                    self.text_bytes += selected.document.size
                    listed_bytes = end
                    continue
                if row is None and (saved.key, saved.sha256) == _identity(selected):
                    self.parts_written, self.splits[selected.split].pending_tokens = saved.parts, saved.tokens
                    self.text_bytes += saved.text_bytes
                remaining = chain([selected], documents)
                break
        self._open(listed_bytes)
        return remaining

    def write(self, selected: Selected, ids: bytes, text_bytes: int, is_last: bool) -> None:
        """Append the next part of a document.

        Args:
            selected: the document.
            ids: the part's token ids, as the bytes of an array.
            text_bytes: UTF-8 bytes of the part's text.
            is_last: whether this part ends the document.
        """
        writer, document = self.splits[selected.split], selected.document
        writer.write(ids)
        self.parts_written += 1
        self.text_bytes += text_bytes
        self._progress.key, self._progress.sha256 = _identity(selected)
        if is_last:
            tokens = writer.finish_document(self._end_of_text_id, document.size)
            self._rows.writerow([selected.split, document.size, tokens, document.sha256, document.key])
            self.parts_written = 0

    def save(self) -> None:
        """Flush everything written to disk, then record how much that is."""
        self._list.flush()
        files: list[Any] = [self._list, *(file for writer in self.splits.values() for file in writer.files)]
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self._progress.listed_bytes = os.fstat(self._list.fileno()).st_size
        self._progress.parts = self.parts_written
        self._progress.tokens = sum(writer.pending_tokens for writer in self.splits.values())
        self._progress.text_bytes = self.text_bytes - sum(writer.bytes for writer in self.splits.values())
        write_json(self._progress_path, asdict(self._progress))

    def close(self) -> None:
        for file in (self._list, *(file for writer in self.splits.values() for file in writer.files)):
            file.close()

    def _read_progress(self, tokenizer_sha256: str) -> Progress:
        """What was saved; nothing if that is absent, unreadable, or of another tokenizer."""
        try:
            saved = Progress(**json.loads(self._progress_path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return Progress(tokenizer_sha256)
        return saved if saved.tokenizer_sha256 == tokenizer_sha256 else Progress(tokenizer_sha256)

    def _open(self, listed_bytes: int) -> None:
        for writer in self.splits.values():
            writer.open()
        file = self.list_path.open("ab")
        file.truncate(listed_bytes)
        self._list = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._rows = csv.writer(self._list, delimiter="\t", lineterminator="\n")
        if not listed_bytes:
            self._rows.writerow(_HEADER)


def forget_progress(directory: Path) -> None:
    """Remove the saved progress: the files in `directory` are complete, or about to change."""
    (directory / _PROGRESS).unlink(missing_ok=True)


def listed_documents(path: Path, size: int) -> Generator[tuple[dict[str, str], int], None, None]:
    """Yield the rows in the first `size` bytes of a documents.tsv, each with the position of its end in the file."""
    if not size or not path.exists():
        return
    with path.open("rb") as file:
        position = len(file.readline())
        for line in file:
            position += len(line)
            if position > size:
                return
            cells = next(csv.reader([line.decode()], delimiter="\t"))
            yield dict(zip(_HEADER, cells, strict=True)), position


def is_row_of(row: dict[str, str], selected: Selected) -> bool:
    """Whether a row of documents.tsv lists this document with the same split, size and text."""
    document = selected.document
    expected = (selected.split, str(document.size), document.sha256, document.key)
    return (row["split"], row["bytes"], row["sha256"], row["key"]) == expected


def _identity(selected: Selected) -> tuple[str, str]:
    return selected.document.key, selected.document.sha256
