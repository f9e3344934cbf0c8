"""Documents to token files: split, deduplicated, encoded, with a manifest.

Of each stage's text, below ``data/tokens/<stage>/``:

    train.bin, validation.bin    token ids, uint16 or uint32, each document followed by end-of-text
    *.offsets.bin                uint64 index of each document's first token
    documents.tsv                every document: split, bytes, tokens, sha256, where it came from
    manifest.json                counts, digests and versions
"""

import csv
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer

from smollm.corpus import Document, Source
from smollm.errors import CorpusError
from smollm.files import file_digest, write_json
from smollm.tokens import BY_DOCUMENT, TRAIN, VALIDATION, token_dtype, vocabulary_size

_BATCH_BYTES = 1_000_000


@dataclass(frozen=True)
class Unique:
    """A document that no earlier one equals."""

    document: Document
    split: str
    bytes: int
    sha256: str


def unique_documents(
    source: Source, max_megabytes: float, validation_fraction: float, removed: Callable[[], object] = lambda: None
) -> Iterator[Unique]:
    """Documents of `source` up to `max_megabytes`, exact duplicates left out, each on its side.

    The side follows from the document's key alone, so that one file's code and documentation,
    in two stages, are never on different sides.
    """
    seen: set[bytes] = set()
    size = 0
    for document in source.documents():
        text = document.text.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(text)
        if digest.digest() in seen:
            removed()
            continue
        if size + len(text) > max_megabytes * 1e6:
            if size == 0:
                raise CorpusError(
                    f"params.yaml: corpus.max_megabytes must hold the first document ({document.key}, "
                    f"{len(text) / 1e6:.2f} MB), got {max_megabytes}; raise it"
                )
            return
        seen.add(digest.digest())
        size += len(text)
        place = int.from_bytes(hashlib.sha256(document.key.encode()).digest()[-8:], "big") / 2**64
        side = VALIDATION if place < validation_fraction else TRAIN
        yield Unique(document, side, len(text), digest.hexdigest())


def training_texts(source: Source, max_megabytes: float, validation_fraction: float) -> Iterator[str]:
    """Texts of the training side, up to `max_megabytes`: what a tokenizer may learn from.

    Where chance has put the few documents there are on the other side, they are the text.
    """
    size = 0
    held_out: list[str] = []
    for one in unique_documents(source, float("inf"), validation_fraction):
        if size + one.bytes > max_megabytes * 1e6 and size:
            return
        if one.split == TRAIN:
            size += one.bytes
            yield one.document.text
        elif not size:
            held_out.append(one.document.text)
    if not size:
        yield from held_out


class _Side:
    """The growing files of one side of the split."""

    def __init__(self, directory: Path, name: str, dtype: type[np.unsignedinteger]) -> None:
        self.tokens_path, self.offsets_path = directory / f"{name}.bin", directory / f"{name}.offsets.bin"
        self.dtype = dtype
        self.documents = self.bytes = self.tokens = 0
        self._tokens: BinaryIO = self.tokens_path.open("wb")
        self._offsets: BinaryIO = self.offsets_path.open("wb")

    def add(self, ids: list[int], size: int) -> None:
        self._offsets.write(np.uint64(self.tokens).tobytes())
        self._tokens.write(np.array(ids, dtype=self.dtype).tobytes())
        self.documents += 1
        self.bytes += size
        self.tokens += len(ids)

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
    max_megabytes: float,
    validation_fraction: float,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the token files of `source` below `directory` and return their manifest.

    Memory stays flat in the number of documents: a batch of them at a time (or one that is larger),
    and a digest for each.

    Args:
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
    duplicates = itertools.count()
    documents = unique_documents(source, max_megabytes, validation_fraction, lambda: next(duplicates))
    listing = directory / "documents.tsv"
    _encode(documents, tokenizer, end, sides, listing, progress)
    if not sum(side.documents for side in sides.values()):
        raise CorpusError(f"params.yaml: corpus.{source.stage} must give text to train on, got none; add text")
    split = BY_DOCUMENT
    if not sides[TRAIN].documents or not sides[VALIDATION].documents:
        split = "by tail: too few documents for a split by document"
        _cut_tail(sides[TRAIN], sides[VALIDATION], validation_fraction)
    manifest: dict[str, Any] = {
        "source": source.config.source.value,
        "versions": source.versions(),
        "split": split,
        "vocab_size": vocab_size,
        "dtype": np.dtype(dtype).name,
        "end_of_text_id": end,
        "duplicates_removed": next(duplicates),
        "not_utf8_left_out": source.not_utf8,
        TRAIN: sides[TRAIN].summary(),
        VALIDATION: sides[VALIDATION].summary(),
        "documents_sha256": file_digest(listing, "sha256"),
    }
    write_json(directory / "manifest.json", manifest)
    return manifest


def _encode(
    documents: Iterator[Unique],
    tokenizer: Tokenizer,
    end: int,
    sides: dict[str, _Side],
    listing: Path,
    progress: Callable[[int], None],
) -> None:
    """Add each document's ids and the id `end` to its side, and a row to the table `listing`."""
    with listing.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["split", "bytes", "tokens", "sha256", "key"])
        for batch in _batches(documents):
            encoded = tokenizer.encode_batch_fast([one.document.text for one in batch], add_special_tokens=False)
            for one, encoding in zip(batch, encoded, strict=True):
                sides[one.split].add([*encoding.ids, end], one.bytes)
                rows.writerow([one.split, one.bytes, len(encoding.ids), one.sha256, one.document.key])
            progress(sum(one.bytes for one in batch))
    for side in sides.values():
        side.close()


def _batches(documents: Iterator[Unique]) -> Iterator[list[Unique]]:
    batch: list[Unique] = []
    size = 0
    for one in documents:
        batch.append(one)
        size += one.bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cut_tail(train: _Side, validation: _Side, fraction: float) -> None:
    """Hold out the last part of the tokens, where the documents are all on one side."""
    if not train.documents:
        validation.tokens_path.replace(train.tokens_path)
        validation.offsets_path.replace(train.offsets_path)
        train.documents, train.bytes, train.tokens = validation.documents, validation.bytes, validation.tokens
    held_out = max(1, int(train.tokens * fraction))
    kept = train.tokens - held_out
    bytes_per_token = train.bytes / train.tokens
    tokens = np.fromfile(train.tokens_path, dtype=train.dtype)
    train.tokens_path.write_bytes(tokens[:kept].tobytes())
    validation.tokens_path.write_bytes(tokens[kept:].tobytes())
    validation.offsets_path.write_bytes(np.zeros(1, np.uint64).tobytes())
    validation.documents, validation.tokens = 1, held_out
    validation.bytes = round(held_out * bytes_per_token)
    train.tokens, train.bytes = kept, train.bytes - validation.bytes
