"""Finds documents that are nearly the same, by their MinHash signatures.

Memory holds the digests of a document's bands (14 of 8 bytes each at a similarity of 0.7), and not the signatures
themselves: no candidate is compared with the document that it resembles. So what is found is a matter of probability,
see `found_half_the_time`, but it is always the same for the same text.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from smollm.corpus.child_pool import batches, in_order
from smollm.corpus.digests import Digests
from smollm.corpus.document import PART, Document
from smollm.corpus.signing_process import BAND_BYTES, HASHES, SigningProcess
from smollm.corpus.source import LeftOutCounts, Source
from smollm.state.tokens import TRAIN, VALIDATION

_BATCH_BYTES = 250_000
"""How much text a process is given at once."""

_PARTS = 16
"""Of a longer document this many parts, spread evenly, are signed: a million characters."""

_REMEMBERED = 100_000
"""Signatures that a source keeps from one reading to the next, such as for the training of a tokenizer."""

_PROCESSES = 4
"""They sign faster than text is read."""


class Reading(NamedTuple):
    """A document as it was read, with its signature, which is empty if near-duplicates are not looked for."""

    document: Document
    signature: bytes
    left_out: LeftOutCounts
    """What the source had left out by then."""


class _Outcome(NamedTuple):
    """What a source gave next: a document, or the error that ended the reading."""

    left_out: LeftOutCounts
    document: Document | None = None
    error: Exception | None = None

    @property
    def size(self) -> int:
        return self.document.size if self.document else 0


def found_half_the_time(bands: int, rows: int) -> float:
    """The similarity at which a pair is found with probability 1/2; at similarity s that is 1 - (1 - s^rows)^bands."""
    return float((1 - 0.5 ** (1 / bands)) ** (1 / rows))


def bands_and_rows(similarity: float) -> tuple[int, int]:
    """The numbers of bands and of hashes per band that find about half of the pairs of this similarity."""
    shapes = [(HASHES // rows, rows) for rows in range(1, HASHES + 1)]
    return min(shapes, key=lambda shape: abs(found_half_the_time(*shape) - similarity))


def signed(source: Source, similarity: float | None) -> Generator[Reading, None, None]:
    """Yield the documents of a source with their signatures, which a few processes compute.

    Documents are read ahead, but what is yielded, and where an error is raised, is the same with any number of
    processes.

    Args:
        source: the stage's text.
        similarity: what near-duplicates share; None if they are not looked for.

    Raises:
        CorpusError: a document cannot be read.
    """
    if similarity is None:
        yield from (Reading(document, b"", replace(source.left_out)) for document in source.documents())
        return
    bands, rows = bands_and_rows(similarity)
    known = source.signatures

    def sign(process: SigningProcess, outcomes: list[_Outcome]) -> dict[str, bytes]:
        documents = [outcome.document for outcome in outcomes if outcome.document]
        unknown = [document for document in documents if document.sha256 not in known]
        signatures = process.sign([_sample(document) for document in unknown])
        return {document.sha256: signature for document, signature in zip(unknown, signatures, strict=True)}

    outcomes = batches(_outcomes(source), lambda outcome: outcome.size, _BATCH_BYTES)
    with closing(in_order(outcomes, sign, lambda: SigningProcess(bands, rows), _PROCESSES)) as pool:
        for batch, signatures in pool:
            for left_out, document, error in batch:
                if error:
                    raise error
                assert document
                signature = signatures.get(document.sha256) or known[document.sha256]
                if len(known) < _REMEMBERED:
                    known[document.sha256] = signature
                yield Reading(document, signature, left_out)


def _outcomes(source: Source) -> Iterator[_Outcome]:
    try:
        for document in source.documents():
            yield _Outcome(replace(source.left_out), document)
    except Exception as error:  # raised when the reader reaches it, not while reading ahead
        yield _Outcome(replace(source.left_out), error=error)


def _sample(document: Document) -> list[str]:
    """The text of a document, or of a long one some parts, spread evenly."""
    step = math.ceil(document.size / PART / _PARTS)
    return list(islice(document.parts(), 0, None, step))


@dataclass
class NearDuplicateCounts:
    """What was found among the documents of one stage."""

    documents: int = 0
    """Left out as near-duplicates."""
    bytes: int = 0
    held_out_bytes: int = 0
    """Of all documents whose key is in the validation split, near-duplicates included."""
    copied_documents: int = 0
    """Those of them with a near-duplicate whose key is in the training split."""
    copied_bytes: int = 0

    @property
    def copied_share(self) -> float:
        """Share of the held-out text that would have had a near-duplicate in training, had none been left out."""
        return self.copied_bytes / max(1, self.held_out_bytes)


class SimilarTexts:
    """The signatures of the documents that a stage keeps."""

    def __init__(self) -> None:
        self._train = Digests(BAND_BYTES)
        self._held_out: dict[bytes, int] = {}
        """The first held-out document with a band's digest."""
        self._sizes: list[int] = []
        """Of held-out documents; 0 for one that is counted as copied."""
        self.counts = NearDuplicateCounts()

    def add(self, signature: bytes, split: str, size: int) -> None:
        """Note a document that is kept."""
        if split == TRAIN:
            for digest in _digests(signature):
                self._train.add(digest)
            return
        self.counts.held_out_bytes += size
        for digest in _digests(signature):
            self._held_out.setdefault(digest, len(self._sizes))
        self._sizes.append(size)

    def splits(self, signature: bytes) -> set[str]:
        """The splits that have a near-duplicate."""
        digests = _digests(signature)
        is_held_out = any(digest in self._held_out for digest in digests)
        return {split for split, has in ((TRAIN, self._train.has_any(digests)), (VALIDATION, is_held_out)) if has}

    def leave_out(self, signature: bytes, split: str, size: int) -> None:
        """Count a document that is left out; `split` is the split of its key."""
        self.counts.documents += 1
        self.counts.bytes += size
        if split == VALIDATION:
            self.counts.held_out_bytes += size
            if TRAIN in self.splits(signature):
                self._count_copied(size)
            return
        for number in {self._held_out[digest] for digest in _digests(signature) if digest in self._held_out}:
            self._count_copied(self._sizes[number])
            self._sizes[number] = 0

    def _count_copied(self, size: int) -> None:
        self.counts.copied_documents += size > 0
        self.counts.copied_bytes += size


def _digests(signature: bytes) -> list[bytes]:
    return [signature[start : start + BAND_BYTES] for start in range(0, len(signature), BAND_BYTES)]
