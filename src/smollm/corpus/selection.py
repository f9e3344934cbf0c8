"""Select documents: drop duplicates, apply limits, split into training and validation."""

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

_MANY_DOCUMENTS = 10_000
"""From so many on a split by document is always fair."""


class Digests:
    """A set of sha256 digests that keeps the first 16 bytes of each, which are enough to tell any two apart."""

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
    """The side of each document: training or validation.

    A hash of the document's key decides, so that one file's code and documentation, in two stages, are never on
    different sides, and documents stay where they are when others are added. A text that was seen under another key,
    in this stage or an earlier one, stays on the side it has there, and its new key moves to that side.
    """

    def __init__(self, validation_fraction: float) -> None:
        self.validation_fraction = validation_fraction
        self._texts = {TRAIN: Digests(), VALIDATION: Digests()}
        self._moved: dict[str, str] = {}
        self._split_by_tail: str | None = None
        """Digest of the documents of the last stage whose tail is held out."""

    def knows(self, document: Document) -> bool:
        """Whether the side of a document with this text was asked for before."""
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
        """Refuse a stage that shares documents with an earlier one, if the tail of either one's text is held out.

        The other stage would train on that tail, unless both have the very same text.

        Args:
            stage: whose text it is.
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
    """A document that is kept, with its side of the split."""

    document: Document
    side: str


@dataclass
class SelectionCounts:
    """What `select` counts on the way."""

    duplicates: int = 0
    """Documents left out, since an earlier one has the same text."""
    shared: int = 0
    """Kept documents that an earlier stage has too."""
    limit: str | None = None
    """The setting that ended the selection before the source's end."""


def select(source: Source, corpus: CorpusConfig, split: Split, counts: SelectionCounts) -> Iterator[Selected]:
    """Yield the documents of `source` within the corpus's limits, without exact duplicates, each with its side.

    Args:
        source: the stage's text.
        corpus: has the limits.
        split: of all stages, in their order.
        counts: updated on the way.

    Raises:
        CorpusError: not one document is within the limits, or one cannot be read.
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
    """Whether the tail of the text is to be held out, since its documents are no fair split of it.

    So it is where few documents, or a long one among short ones, leave less than half of `fraction` on the held-out
    side, or more than twice as much.
    """
    share = validation_bytes / max(1, train_bytes + validation_bytes)
    is_unfair = documents < _MANY_DOCUMENTS and not fraction / 2 <= share <= 2 * fraction
    return is_unfair or not train_bytes or not validation_bytes


def training_texts(source: Source, corpus: CorpusConfig, max_megabytes: float) -> Iterator[str]:
    """Yield text that is trained on, up to `max_megabytes`: a tokenizer may learn from it.

    Where the tail of the text is held out, see `is_split_by_tail`, that is left out here too.
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
