"""Selects documents: drops duplicates, applies limits, assigns each document to training or validation."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from smollm.config.corpus import CorpusConfig
from smollm.corpus.document import Document
from smollm.corpus.source import Source
from smollm.errors import CorpusError
from smollm.state.tokens import TRAIN, VALIDATION

_RECENT = 500_000
"""How many digests are collected before they are sorted in."""

_MANY_DOCUMENTS = 10_000
"""With at least this many documents a split by document is always fair."""


class Digests:
    """A set of sha256 digests; keeps the first 16 bytes of each, which are enough to tell documents apart."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, "S16")
        self._recent: set[bytes] = set()

    def add(self, digest: str) -> None:
        self._recent.add(self._short(digest))
        if len(self._recent) == _RECENT:
            self._sorted = np.concatenate([self._sorted, np.array(list(self._recent), "S16")])
            self._sorted.sort()
            self._recent.clear()

    def __contains__(self, digest: str) -> bool:
        short = self._short(digest)
        index = int(np.searchsorted(self._sorted, np.bytes_(short)))
        return short in self._recent or (index < len(self._sorted) and bytes(self._sorted[index]) == short)

    @staticmethod
    def _short(digest: str) -> bytes:
        return bytes.fromhex(digest[:32]).rstrip(b"\0")  # numpy's strings end so too


class Split:
    """Assigns each document to training or validation.

    A hash of the document's key decides. So a file's code and documentation, which two stages read, are on the same
    side, and documents stay on their side when others are added. A text that was seen before under another key, in
    this stage or an earlier one, keeps its side, and its new key moves to that side.
    """

    def __init__(self, validation_fraction: float) -> None:
        self.validation_fraction = validation_fraction
        self._texts = {TRAIN: Digests(), VALIDATION: Digests()}
        self._moved: dict[str, str] = {}
        self._split_by_tail: str | None = None
        """Digest of the list of documents of the last stage whose tail is held out."""

    def knows(self, document: Document) -> bool:
        """Whether `side` was asked before about a document with this text."""
        return any(document.sha256 in texts for texts in self._texts.values())

    def side(self, document: Document) -> str:
        """`TRAIN` or `VALIDATION`."""
        fraction = int.from_bytes(hashlib.sha256(document.key.encode()).digest()[-8:], "big") / 2**64
        by_key = self._moved.get(document.key, VALIDATION if fraction < self.validation_fraction else TRAIN)
        known = next((side for side, texts in self._texts.items() if document.sha256 in texts), None)
        if known is None:
            self._texts[by_key].add(document.sha256)
        elif known != by_key:
            self._moved[document.key] = known
        return known or by_key

    def check_tail(self, stage: str, is_by_tail: bool, documents_sha256: str, shared: int) -> None:
        """Refuse a stage that shares documents with an earlier one if the tail of either one's text is held out.

        Unless both have exactly the same documents, one stage would train on the tail that the other holds out.

        Args:
            stage: the stage.
            is_by_tail: whether its tail is held out, see `is_split_by_tail`.
            documents_sha256: digest of the list of its documents.
            shared: how many of them an earlier stage has.

        Raises:
            CorpusError: it shares some.
        """
        if shared and (is_by_tail or self._split_by_tail) and documents_sha256 != self._split_by_tail:
            raise CorpusError(
                f"params.yaml: corpus.{stage} must have the same documents as the stage before, or no common ones, "
                "where those are too few or too unequal for a split by document, got "
                f"{shared} common ones; choose other files, or give both more documents"
            )
        self._split_by_tail = documents_sha256 if is_by_tail else self._split_by_tail


@dataclass(frozen=True)
class Selected:
    """A document that is kept, and its side of the split."""

    document: Document
    side: str


@dataclass
class SelectionCounts:
    """What `select` counts."""

    duplicates: int = 0
    """Documents left out because an earlier one has the same text."""
    shared: int = 0
    """Kept documents whose text an earlier stage has too."""
    limit: str | None = None
    """The setting that ended the selection before the end of the source, if one did."""


def select(source: Source, corpus: CorpusConfig, split: Split, counts: SelectionCounts) -> Iterator[Selected]:
    """Yield the documents of `source` that are kept: within the corpus's limits and without exact duplicates.

    Args:
        source: the stage's text.
        corpus: the limits.
        split: gives each document its side; the same one for all stages, in their order.
        counts: updated while documents are read.

    Raises:
        CorpusError: the first document exceeds the limits, or a document cannot be read.
    """
    seen = Digests()
    size = count = 0
    for document in source.documents():
        if document.sha256 in seen:
            counts.duplicates += 1
            split.side(document)  # moves its key to the side of this text
            continue
        if count == corpus.max_documents:
            counts.limit = "max_documents"
            return
        if size + document.size > corpus.max_megabytes * 1e6:
            if size == 0:
                raise CorpusError(
                    f"params.yaml: corpus.max_megabytes must hold the first document ({document.key}, "
                    f"{document.size / 1e6:.2f} MB), got {corpus.max_megabytes}; raise it"
                )
            counts.limit = "max_megabytes"
            return
        counts.shared += split.knows(document)
        seen.add(document.sha256)
        size += document.size
        count += 1
        yield Selected(document, split.side(document))


def is_split_by_tail(documents: int, train_bytes: int, validation_bytes: int, fraction: float) -> bool:
    """Whether to hold out the end of the text because a split by document would be unfair.

    It is unfair if a few documents, or a long one among short ones, put less than half of `fraction` of the text on
    the held-out side, or more than twice as much.
    """
    share = validation_bytes / max(1, train_bytes + validation_bytes)
    is_unfair = documents < _MANY_DOCUMENTS and not fraction / 2 <= share <= 2 * fraction
    return is_unfair or not train_bytes or not validation_bytes


def training_texts(source: Source, corpus: CorpusConfig, max_megabytes: float) -> Iterator[str]:
    """Yield text of the training side, up to `max_megabytes`, for a tokenizer to learn from.

    If the end of the text is held out, see `is_split_by_tail`, it is left out here too.
    """
    fraction = corpus.validation_fraction
    sizes = {TRAIN: 0, VALIDATION: 0}
    count = 0
    for selected in select(source, corpus, Split(fraction), SelectionCounts()):
        sizes[selected.side] += selected.document.size
        count += 1
        if count >= _MANY_DOCUMENTS and all(sizes.values()):
            break
    texts = _parts_of(TRAIN, source, corpus)
    if is_split_by_tail(count, sizes[TRAIN], sizes[VALIDATION], fraction):
        everything = itertools.chain(texts, _parts_of(VALIDATION, source, corpus))
        texts = _beginning(everything, int((1 - fraction) * sum(sizes.values())))
    size = 0
    for text in texts:
        if size and size + len(text.encode()) > max_megabytes * 1e6:
            return
        size += len(text.encode())
        yield text


def _parts_of(side: str, source: Source, corpus: CorpusConfig) -> Iterator[str]:
    for selected in select(source, corpus, Split(corpus.validation_fraction), SelectionCounts()):
        if selected.side == side:
            yield from selected.document.parts()


def _beginning(texts: Iterable[str], size: int) -> Iterator[str]:
    """The first `size` bytes of all texts together."""
    for text in texts:
        content = text.encode()[:size]
        if not content:
            return
        size -= len(content)
        yield content.decode(errors="ignore")  # part of a character may be cut off
