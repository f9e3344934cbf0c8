"""Documents to token files: split, deduplicated, encoded, with a manifest.

Of each stage's text, below ``data/tokens/<stage>/``:

    train.bin, validation.bin    token ids, uint16 or uint32, each document followed by end-of-text
    *.offsets.bin                uint64 index of each document's first token
    documents.tsv                every document: split, bytes, tokens, sha256, where it came from
    manifest.json                counts, digests and versions
"""

import csv
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from tokenizers import Tokenizer

from smollm.config.corpus import CorpusConfig
from smollm.corpus.encoding_process import EncodingProcess
from smollm.corpus.selection import Selected, Split, Tally, select
from smollm.corpus.source import Source
from smollm.errors import CorpusError
from smollm.state.files import file_digest, write_json
from smollm.state.tokens import BY_DOCUMENT, TRAIN, VALIDATION, token_dtype, vocabulary_size

T = TypeVar("T")

_BATCH = 250_000
"""Characters that a process gets at once."""

_MOST_PROCESSES = 16
"""Each holds about 35 MB."""


class _Side:
    """The growing files of one side of the split."""

    def __init__(self, directory: Path, name: str, dtype: type[np.unsignedinteger]) -> None:
        self.tokens_path, self.offsets_path = directory / f"{name}.bin", directory / f"{name}.offsets.bin"
        self.dtype = dtype
        self.documents = self.bytes = self.tokens = 0
        self._length = 0
        self._tokens: BinaryIO = self.tokens_path.open("wb")
        self._offsets: BinaryIO = self.offsets_path.open("wb")

    def write(self, ids: bytes) -> None:
        """Add tokens, in the bytes of an array, to the document that is being written."""
        self._tokens.write(ids)
        self._length += len(ids) // np.dtype(self.dtype).itemsize

    def finish(self, end: int, size: int) -> int:
        """End a document of `size` bytes with the token `end`; how many it has without that."""
        length = self._length
        self.write(self.dtype(end).tobytes())
        self._offsets.write(np.uint64(self.tokens).tobytes())
        self.documents += 1
        self.bytes += size
        self.tokens += self._length
        self._length = 0
        return length

    def close(self) -> None:
        self._tokens.close()
        self._offsets.close()

    def summary(self) -> dict[str, object]:
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": round(self.bytes / max(1, self.tokens - self.documents), 4),
            "sha256": file_digest(self.tokens_path, "sha256"),
        }


def write(
    directory: Path,
    source: Source,
    tokenizer: Tokenizer,
    end_of_text: str,
    corpus: CorpusConfig,
    split: Split,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the token files of `source` below `directory` and return their manifest.

    Memory does not grow with the text, but for 32 bytes a document that tell duplicates.

    Args:
        split: of all stages, given from one to the next.
        progress: called with the bytes of text done since the last call.

    Raises:
        CorpusError: there is no text, or it cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = vocabulary_size(tokenizer)
    dtype = token_dtype(vocab_size)
    end = tokenizer.token_to_id(end_of_text)
    assert end is not None, "a checked tokenizer"
    sides = {name: _Side(directory, name, dtype) for name in (TRAIN, VALIDATION)}
    tally = Tally()
    documents = select(source, corpus, split, tally)
    listing = directory / "documents.tsv"
    _encode(documents, tokenizer, end, dtype, sides, listing, progress)
    if not sum(side.documents for side in sides.values()):
        raise CorpusError(f"params.yaml: corpus.{source.stage} must give text to train on, got none; add text")
    how = BY_DOCUMENT
    is_cut = not sides[TRAIN].documents or not sides[VALIDATION].documents
    listed = file_digest(listing, "sha256")
    split.check_cut(source.stage, is_cut, listed, tally.shared)
    if is_cut:
        how = "by tail: too few documents for a split by document"
        _cut_tail(sides[TRAIN], sides[VALIDATION], corpus.validation_fraction)
    manifest: dict[str, Any] = {
        "source": source.config.source.value,
        "versions": source.versions(),
        "split": how,
        "vocab_size": vocab_size,
        "dtype": np.dtype(dtype).name,
        "end_of_text_id": end,
        "duplicates_removed": tally.duplicates,
        "blank_left_out": source.left_out.blank,
        "null_left_out": source.left_out.null,
        "not_utf8_left_out": source.left_out.not_utf8,
        "ended_by": tally.limit,
        TRAIN: sides[TRAIN].summary(),
        VALIDATION: sides[VALIDATION].summary(),
        "documents_sha256": listed,
    }
    write_json(directory / "manifest.json", manifest)
    return manifest


def _encode(
    documents: Iterator[Selected],
    tokenizer: Tokenizer,
    end: int,
    dtype: type[np.unsignedinteger],
    sides: dict[str, _Side],
    listing: Path,
    progress: Callable[[int], None],
) -> None:
    """Add each document's ids and the id `end` to its side, and a row to the table `listing`."""
    with listing.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["split", "bytes", "tokens", "sha256", "key"])
        with closing(_encoded(_ahead(_batches(_parts(documents))), tokenizer, dtype)) as encoded:
            for batch, ids_of_parts in encoded:
                for (one, _, is_last), ids in zip(batch, ids_of_parts, strict=True):
                    sides[one.side].write(ids)
                    if is_last:
                        tokens = sides[one.side].finish(end, one.document.size)
                        rows.writerow([one.side, one.document.size, tokens, one.document.sha256, one.document.key])
                progress(sum(len(text.encode()) for _, text, _ in batch))
    for side in sides.values():
        side.close()


Part = tuple[Selected, str, bool]
"""A document, one part of its text, and whether it is the last."""


def _parts(documents: Iterable[Selected]) -> Iterator[Part]:
    for one in documents:
        parts = one.document.parts()
        text = next(parts)
        for following in parts:
            yield one, text, False
            text = following
        yield one, text, True


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part[1])
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterator[list[Part]], tokenizer: Tokenizer, dtype: type[np.unsignedinteger]
) -> Generator[tuple[list[Part], list[bytes]], None, None]:
    """Batches, in their order, with the ids of each part; processes encode them, one a core, started when needed."""
    most = min(_cores(), _MOST_PROCESSES)
    json = tokenizer.to_str()
    free: queue.SimpleQueue[EncodingProcess] = queue.SimpleQueue()
    started: list[EncodingProcess] = []

    def encode(texts: list[str]) -> list[bytes]:
        try:
            process = free.get_nowait()
        except queue.Empty:
            process = EncodingProcess(json, np.dtype(dtype).char)
            started.append(process)
        encoded = process.encode(texts)
        free.put(process)
        return encoded

    threads = ThreadPoolExecutor(most)
    waiting: deque[tuple[list[Part], Future[list[bytes]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, threads.submit(encode, [text for _, text, _ in batch])))
            if len(waiting) > 2 * most:
                done, ids = waiting.popleft()
                yield done, ids.result()
        for done, ids in waiting:
            yield done, ids.result()
    finally:
        threads.shutdown(cancel_futures=True)
        for process in started:
            process.close()


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ahead(items: Iterator[T], most: int = 4) -> Iterator[T]:
    """The same items, up to `most` of them made by a thread before they are asked for."""
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(most)
    is_over = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> None:
        while not is_over.is_set():
            try:
                made.put((item, error), timeout=0.1)
                break
            except queue.Full:
                pass

    def make() -> None:
        try:
            for item in items:
                put(item)
                if is_over.is_set():
                    return
            put(None)
        except BaseException as error:
            put(None, error)

    threading.Thread(target=make, name="reader", daemon=True).start()
    try:
        while True:
            item, error = made.get()
            if error:
                raise error
            if item is None:
                return
            yield item
    finally:
        is_over.set()


def _cut_tail(train: _Side, validation: _Side, fraction: float) -> None:
    """Hold out the last part of the tokens, where the documents are all on one side."""
    if not train.documents:
        validation.tokens_path.replace(train.tokens_path)
        validation.offsets_path.replace(train.offsets_path)
        train.documents, train.bytes, train.tokens = validation.documents, validation.bytes, validation.tokens
    held_out = max(1, int(train.tokens * fraction))
    kept = train.tokens - held_out
    bytes_per_token = train.bytes / train.tokens
    # not by ndarray.tofile, which says nothing, or not what is wrong, where the disk is full
    validation.tokens_path.write_bytes(np.memmap(train.tokens_path, dtype=train.dtype, mode="r")[kept:].data)
    os.truncate(train.tokens_path, kept * np.dtype(train.dtype).itemsize)
    offsets = np.fromfile(train.offsets_path, np.uint64)
    train.offsets_path.write_bytes(offsets[offsets < kept].data)
    following = offsets[offsets > kept] - np.uint64(kept)
    validation.offsets_path.write_bytes(np.concatenate([np.zeros(1, np.uint64), following]).data)
    train.documents, validation.documents = int((offsets < kept).sum()), 1 + len(following)
    validation.tokens, validation.bytes = held_out, round(held_out * bytes_per_token)
    train.tokens, train.bytes = kept, train.bytes - validation.bytes
