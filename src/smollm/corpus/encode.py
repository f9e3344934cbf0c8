"""Writes a stage's text as token files: selects its documents, encodes them, and writes a manifest.

``data/tokens/<stage>/`` then holds:

    train.bin, validation.bin    token ids, uint16 or uint32; every document ends with the end-of-text token
    *.offsets.bin                uint64: the index of each document's first token in that file
    documents.tsv                a row for each document: split, bytes, tokens, sha256, key
    manifest.json                counts, digests and versions
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from smollm.config.corpus import CorpusConfig
from smollm.corpus.child_pool import batches, in_order, read_ahead
from smollm.corpus.encoding_process import EncodingProcess
from smollm.corpus.near_duplicates import NearDuplicateCounts
from smollm.corpus.selection import Selected, SelectionCounts, Splitter, is_split_by_tail, select
from smollm.corpus.source import Source
from smollm.corpus.tail import hold_out_tail
from smollm.corpus.token_writer import TokenWriter, forget_progress, is_row_of, listed_documents
from smollm.errors import CorpusError
from smollm.state.files import file_digest, write_json
from smollm.state.tokens import (
    BY_DOCUMENT,
    TRAIN,
    VALIDATION,
    documents_path,
    manifest_path,
    read_manifest,
    token_dtype,
    vocabulary_size,
)

BY_TAIL = "by tail: documents too few or too unequal for a split by document"

_BATCH_CHARACTERS = 250_000
"""How much text a process is given at once."""

_SAVE_BYTES = 64_000_000
"""How much text is encoded between two saves: seconds of work with a process per core."""


class Part(NamedTuple):
    """A piece of a document's text."""

    selected: Selected
    text: str
    is_last: bool


@dataclass(frozen=True)
class Encoder:
    """Writes the token files of the stages, one stage after another.

    Call `write`, or `reread` for files that are complete, once for each stage, in order: the splitter learns from each
    stage's documents, so that no stage trains on what another one holds out.
    """

    tokenizer: Tokenizer
    end_of_text: str
    corpus: CorpusConfig
    splitter: Splitter

    def write(
        self,
        directory: Path,
        source: Source,
        on_progress: Callable[[int], object] = lambda text_bytes: None,
        on_resume: Callable[[int, int], object] = lambda documents, text_bytes: None,
    ) -> dict[str, Any]:
        """Write the token files of `source` to `directory` and return their manifest.

        If an earlier call was killed, this one continues from its last save; the files come out the same. Memory grows
        per document, by what detects duplicates, and not with the text.

        Args:
            directory: where the files go.
            source: the stage's text.
            on_progress: called with the bytes of text encoded since its last call.
            on_resume: called once if an earlier call was killed, with the documents and the bytes of text it wrote.

        Raises:
            CorpusError: the source has no text, or cannot be read.
        """
        dtype = token_dtype(vocabulary_size(self.tokenizer))
        tokenizer_sha256 = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()
        writer = TokenWriter(directory, tokenizer_sha256, dtype, self._end_of_text_id)
        train, validation = writer.splits[TRAIN], writer.splits[VALIDATION]
        counts = SelectionCounts()
        remaining = writer.skip_written(select(source, self.corpus, self.splitter, counts))
        if writer.text_bytes:
            on_resume(train.documents + validation.documents, writer.text_bytes)
        self._encode(remaining, writer, dtype, on_progress)
        documents = train.documents + validation.documents
        if not documents:
            raise CorpusError(f"params.yaml: corpus.{source.stage} must give text to train on, got none; add text")
        is_by_tail = is_split_by_tail(documents, train.bytes, validation.bytes, self.corpus.validation_fraction)
        documents_sha256 = file_digest(writer.list_path, "sha256")
        self.splitter.check_tail(source.stage, is_by_tail, documents_sha256, counts.shared)
        if is_by_tail:
            forget_progress(directory)  # the files are about to change; a kill in between must start over
            hold_out_tail(train, validation, self.corpus.validation_fraction)
        manifest = {
            **self._origin(source, counts, is_by_tail),
            "documents": documents,  # one that was cut in two is in both splits
            TRAIN: train.summary(),
            VALIDATION: validation.summary(),
            "documents_sha256": documents_sha256,
        }
        write_json(manifest_path(directory), manifest)
        forget_progress(directory)
        return manifest

    def reread(self, directory: Path, source: Source) -> dict[str, Any]:
        """Read the documents of complete token files again, for the splitter to learn them; return the manifest.

        Raises:
            CorpusError: `source` now gives other documents than the files hold.
        """
        forget_progress(directory)
        manifest, list_path = read_manifest(directory), documents_path(directory)
        counts = SelectionCounts()
        with closing(listed_documents(list_path, list_path.stat().st_size)) as rows:
            documents = select(source, self.corpus, self.splitter, counts)
            for selected, row in itertools.zip_longest(documents, (row for row, _ in rows)):
                if selected is None or row is None or not is_row_of(row, selected):
                    raise CorpusError(
                        f"corpus.{source.stage}: its text changed since the start that was killed; remove {directory}, "
                        "then run `dvc repro`"
                    )
        is_by_tail = manifest["split"] != BY_DOCUMENT
        self.splitter.check_tail(source.stage, is_by_tail, manifest["documents_sha256"], counts.shared)
        return manifest

    @property
    def _end_of_text_id(self) -> int:
        end_of_text_id: int | None = self.tokenizer.token_to_id(self.end_of_text)
        assert end_of_text_id is not None, "a checked tokenizer"
        return end_of_text_id

    def _origin(self, source: Source, counts: SelectionCounts, is_by_tail: bool) -> dict[str, Any]:
        """The manifest's entries on the whole text: its source, how it was split and encoded, what was left out."""
        vocab_size = vocabulary_size(self.tokenizer)
        return {
            "source": source.config.source.value,
            "versions": source.versions(),
            "split": BY_TAIL if is_by_tail else BY_DOCUMENT,
            "vocab_size": vocab_size,
            "dtype": np.dtype(token_dtype(vocab_size)).name,
            "end_of_text_id": self._end_of_text_id,
            "duplicates_removed": counts.duplicates,
            "near_duplicates": self._near_duplicates(counts.near, is_by_tail),
            "blank_left_out": counts.left_out.blank,
            "null_left_out": counts.left_out.null,
            "not_utf8_left_out": counts.left_out.not_utf8,
            "ended_by": counts.limit,
        }

    def _near_duplicates(self, counts: NearDuplicateCounts, is_by_tail: bool) -> dict[str, Any] | None:
        """The manifest's entries on near-duplicates; None if they are not looked for."""
        if self.corpus.near_duplicate_similarity is None:
            return None
        found: dict[str, Any] = {"removed": counts.documents, "removed_bytes": counts.bytes}
        if not is_by_tail:  # by tail, no document is held out because of its key
            found["held_out_with_one_in_training"] = counts.copied_documents
            found["held_out_share_with_one_in_training"] = round(counts.copied_share, 4)
        return found

    def _start_process(self, dtype: type[np.unsignedinteger]) -> EncodingProcess:
        return EncodingProcess(self.tokenizer.to_str(), np.dtype(dtype).char)

    def _encode(
        self,
        documents: Iterator[Selected],
        writer: TokenWriter,
        dtype: type[np.unsignedinteger],
        on_progress: Callable[[int], object],
    ) -> None:
        unsaved = 0
        try:
            parts = _parts(documents, writer.parts_written)
            batches_of_parts = read_ahead(batches(parts, lambda part: len(part.text), _BATCH_CHARACTERS))
            with closing(in_order(batches_of_parts, _encode, partial(self._start_process, dtype))) as encoded:
                for batch, ids_of_parts in encoded:
                    before = writer.text_bytes
                    for part, ids in zip(batch, ids_of_parts, strict=True):
                        writer.write(part.selected, ids, len(part.text.encode()), part.is_last)
                    text_bytes = writer.text_bytes - before
                    on_progress(text_bytes)
                    unsaved += text_bytes
                    if unsaved >= _SAVE_BYTES:
                        writer.save()
                        unsaved = 0
            writer.save()
        finally:
            writer.close()


def _parts(documents: Iterable[Selected], skipped: int) -> Iterator[Part]:
    """The parts of all documents, without the first `skipped` parts of the first document."""
    for selected in documents:
        parts = itertools.islice(selected.document.parts(), skipped, None)
        skipped = 0
        text = next(parts)
        for following in parts:
            yield Part(selected, text, False)
            text = following
        yield Part(selected, text, True)


def _encode(process: EncodingProcess, parts: list[Part]) -> list[bytes]:
    return process.encode([part.text for part in parts])
