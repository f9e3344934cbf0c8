"""Selects documents: drops duplicates, applies limits, assigns each document to training or validation."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from smollm.config.corpus import CorpusConfig
from smollm.corpus.digests import Digests
from smollm.corpus.document import Document
from smollm.corpus.near_duplicates import NearDuplicateCounts, SimilarTexts, signed
from smollm.corpus.source import LeftOutCounts, Source
from smollm.errors import CorpusError
from smollm.state.tokens import TRAIN, VALIDATION

_MANY_DOCUMENTS = 10_000
"""With at least this many documents a split by document is always fair."""


class Splitter:
    """Assigns each document to training or validation.

    A hash of the document's key decides. So a file's code and documentation, which two stages read, are in the same
    split, and documents stay in theirs when others are added. A text that was seen before under another key, in this
    stage or an earlier one, keeps its split, and its new key moves to that split. So does a near-duplicate of a text of
    an earlier stage.
    """

    def __init__(self, validation_fraction: float) -> None:
        self.validation_fraction = validation_fraction
        self._texts = {TRAIN: Digests(), VALIDATION: Digests()}
        self._similar: list[SimilarTexts] = []
        """Of the stages so far, the present one included."""
        self._moved: dict[str, str] = {}
        self._split_by_tail: str | None = None
        """Digest of the list of documents of the last stage whose tail is held out."""

    def begin_stage(self) -> SimilarTexts:
        """The signatures of a new stage's documents, to be added to as they are kept."""
        self._similar.append(SimilarTexts())
        return self._similar[-1]

    def knows(self, document: Document) -> bool:
        """Whether `split_of` was asked before about a document with this text."""
        return self._split_of_text(document) is not None

    def similar_splits(self, signature: bytes) -> set[str]:
        """The splits in which earlier stages have a near-duplicate."""
        return set().union(*(similar.splits(signature) for similar in self._similar[:-1]))

    def split_of_key(self, key: str) -> str:
        """The split of a document with this key, unless its text is known."""
        fraction = int.from_bytes(hashlib.sha256(key.encode()).digest()[-8:], "big") / 2**64
        return self._moved.get(key, VALIDATION if fraction < self.validation_fraction else TRAIN)

    def split_of(self, document: Document, similar_split: str | None = None) -> str:
        """`TRAIN` or `VALIDATION`.

        Args:
            document: its text is known from now on.
            similar_split: the split in which an earlier stage has a near-duplicate.
        """
        known = self._split_of_text(document)
        split = known or similar_split or self.split_of_key(document.key)
        if known is None:
            self._texts[split].add(_digest(document))
        self.move(document.key, split)
        return split

    def move(self, key: str, split: str) -> None:
        """Have documents with this key in `split` from now on."""
        if self.split_of_key(key) != split:
            self._moved[key] = split

    def _split_of_text(self, document: Document) -> str | None:
        digest = _digest(document)
        return next((split for split, texts in self._texts.items() if digest in texts), None)

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
                f"params.yaml: corpus.{stage} must share all documents with the stage before or none, because they are "
                f"too few or too unequal to split by document, got {shared} common ones; choose other files, or give "
                "both more documents"
            )
        self._split_by_tail = documents_sha256 if is_by_tail else self._split_by_tail


@dataclass(frozen=True)
class Selected:
    """A document that is kept, and its split."""

    document: Document
    split: str


@dataclass
class SelectionCounts:
    """What `select` counts."""

    duplicates: int = 0
    """Documents left out because an earlier one has the same text."""
    shared: int = 0
    """Kept documents whose text an earlier stage has too."""
    limit: str | None = None
    """The setting that ended the selection before the end of the source, if one did."""
    left_out: LeftOutCounts = field(default_factory=LeftOutCounts)
    """What the source left out before the end of the selection."""
    near: NearDuplicateCounts = field(default_factory=NearDuplicateCounts)


def select(source: Source, corpus: CorpusConfig, splitter: Splitter, counts: SelectionCounts) -> Iterator[Selected]:
    """Yield the documents of `source` that are kept: within the corpus's limits and without duplicates.

    Of near-duplicates the first is kept, in the split of its key. If one split had precedence, a text with many
    near-duplicates would be there more often than its share, and documents would change splits when others are added.

    Args:
        source: the stage's text.
        corpus: the limits.
        splitter: gives each document its split; the same one for all stages, in their order.
        counts: updated while documents are read.

    Raises:
        CorpusError: the first document exceeds the limits, or a document cannot be read.
    """
    seen, similar = Digests(), splitter.begin_stage()
    counts.near = similar.counts
    size = count = 0
    with closing(signed(source, corpus.near_duplicate_similarity)) as readings:
        for document, signature, left_out in readings:
            counts.left_out = left_out
            if _digest(document) in seen:
                counts.duplicates += 1
                splitter.split_of(document)  # moves its key to the split of this text
                continue
            splits = similar.splits(signature)
            earlier = set() if splitter.knows(document) else splitter.similar_splits(signature)
            if splits or len(earlier) == 2:  # it resembles texts in both splits, so it fits neither
                similar.leave_out(signature, splitter.split_of_key(document.key), document.size)
                splitter.move(document.key, VALIDATION if VALIDATION in splits | earlier else TRAIN)
                continue
            counts.limit = _limit_before(document, size, count, corpus)
            if counts.limit:
                return
            counts.shared += splitter.knows(document)
            split = splitter.split_of(document, next(iter(earlier), None))
            seen.add(_digest(document))
            similar.add(signature, split, document.size)
            size += document.size
            count += 1
            yield Selected(document, split)
    counts.left_out = source.left_out


def _limit_before(document: Document, size: int, count: int, corpus: CorpusConfig) -> str | None:
    """The setting that ends the selection before `document`, after `count` documents of `size` bytes, if one does.

    Raises:
        CorpusError: it is the first document.
    """
    if count == corpus.max_documents:
        return "max_documents"
    if size + document.size <= corpus.max_megabytes * 1e6:
        return None
    if size == 0:
        raise CorpusError(
            f"params.yaml: corpus.max_megabytes must hold the first document ({document.key}, "
            f"{document.size / 1e6:.2f} MB), got {corpus.max_megabytes}; raise it"
        )
    return "max_megabytes"


def _digest(document: Document) -> bytes:
    return bytes.fromhex(document.sha256)


def is_split_by_tail(documents: int, train_bytes: int, validation_bytes: int, fraction: float) -> bool:
    """Whether to hold out the end of the text because a split by document would be unfair.

    It is unfair if a few documents, or a long one among short ones, put less than half of `fraction` of the text on
    the validation split, or more than twice as much.
    """
    share = validation_bytes / max(1, train_bytes + validation_bytes)
    is_unfair = documents < _MANY_DOCUMENTS and not fraction / 2 <= share <= 2 * fraction
    return is_unfair or not train_bytes or not validation_bytes


def training_texts(source: Source, corpus: CorpusConfig, max_megabytes: float) -> Iterator[str]:
    """Yield text of the training split, up to `max_megabytes`, for a tokenizer to learn from.

    If the end of the text is held out, see `is_split_by_tail`, it is left out here too.
    """
    fraction = corpus.validation_fraction
    sizes = {TRAIN: 0, VALIDATION: 0}
    count = 0
    for selected in select(source, corpus, Splitter(fraction), SelectionCounts()):
        sizes[selected.split] += selected.document.size
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


def _parts_of(split: str, source: Source, corpus: CorpusConfig) -> Iterator[str]:
    for selected in select(source, corpus, Splitter(corpus.validation_fraction), SelectionCounts()):
        if selected.split == split:
            yield from selected.document.parts()


def _beginning(texts: Iterable[str], size: int) -> Iterator[str]:
    """The first `size` bytes of all texts together."""
    for text in texts:
        content = text.encode()[:size]
        if not content:
            return
        size -= len(content)
        yield content.decode(errors="ignore")  # part of a character may be cut off
