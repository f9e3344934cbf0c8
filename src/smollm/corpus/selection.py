"""Which documents of a corpus are kept, and on which side of the split each is."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from smollm.config.corpus import CorpusConfig
from smollm.corpus.document import Document
from smollm.corpus.source import Source
from smollm.errors import CorpusError
from smollm.state.tokens import TRAIN, VALIDATION

_RECENT = 500_000


class Digests:
    """A set of sha256 digests; takes 16 bytes for each, which are enough to tell any two apart."""

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
        place = int(np.searchsorted(self._sorted, np.bytes_(short)))
        return short in self._recent or (place < len(self._sorted) and bytes(self._sorted[place]) == short)

    @staticmethod
    def _short(digest: str) -> bytes:
        return bytes.fromhex(digest[:32]).rstrip(b"\0")  # numpy's strings end so too


class Split:
    """The side of each document: training or validation.

    It follows from the document's key alone, so that one file's code and documentation, in two stages, are never
    on different sides, and documents stay where they are when others are added. A text that is known under another
    key, of this stage or an earlier one, is on the side that it has there, and so is that key from then on.
    """

    def __init__(self, validation_fraction: float) -> None:
        self.validation_fraction = validation_fraction
        self._texts = {TRAIN: Digests(), VALIDATION: Digests()}
        self._moved: dict[str, str] = {}
        self._cut: str | None = None

    def knows(self, document: Document) -> bool:
        """Whether a document with this text was asked for before."""
        return any(document.sha256 in texts for texts in self._texts.values())

    def side(self, document: Document) -> str:
        place = int.from_bytes(hashlib.sha256(document.key.encode()).digest()[-8:], "big") / 2**64
        by_key = self._moved.get(document.key, VALIDATION if place < self.validation_fraction else TRAIN)
        known = next((side for side, texts in self._texts.items() if document.sha256 in texts), None)
        if known is None:
            self._texts[by_key].add(document.sha256)
        elif known != by_key:
            self._moved[document.key] = known
        return known or by_key

    def check_cut(self, stage: str, is_cut: bool, documents: str, shared: int) -> None:
        """Refuse a stage that shares documents with an earlier one, if the text of either is cut at its end.

        The part that is held out would be trained on in the other stage, unless both have the very same text.

        Args:
            stage: whose text it is.
            is_cut: whether it is cut, having too few documents for a split by document.
            documents: digest of the list of them.
            shared: how many of them an earlier stage has.

        Raises:
            CorpusError: it shares some.
        """
        if shared and (is_cut or self._cut) and documents != self._cut:
            raise CorpusError(
                f"params.yaml: corpus.{stage} must have the same documents as the stage before, or no common ones, "
                f"where they are too few for a split by document, got {shared} common ones; choose other files, or "
                "give both more documents"
            )
        self._cut = documents if is_cut else self._cut


@dataclass(frozen=True)
class Selected:
    """A document that is kept."""

    document: Document
    side: str


@dataclass
class Tally:
    """What `select` made of a source."""

    duplicates: int = 0
    shared: int = 0
    """Kept documents that an earlier stage has too."""
    limit: str | None = None
    """The setting that ended the selection before the source's end."""


def select(source: Source, corpus: CorpusConfig, split: Split, tally: Tally) -> Iterator[Selected]:
    """Documents of `source` within the corpus's limits, exact duplicates left out, each with its side.

    Args:
        tally: is kept on the way.

    Raises:
        CorpusError: not one document is within the limits, or one cannot be read.
    """
    seen = Digests()
    size = count = 0
    for document in source.documents():
        if document.sha256 in seen:
            tally.duplicates += 1
            split.side(document)  # what else is under its key belongs where this text is
            continue
        if count == corpus.max_documents:
            tally.limit = "max_documents"
            return
        if size + document.size > corpus.max_megabytes * 1e6:
            if size == 0:
                raise CorpusError(
                    f"params.yaml: corpus.max_megabytes must hold the first document ({document.key}, "
                    f"{document.size / 1e6:.2f} MB), got {corpus.max_megabytes}; raise it"
                )
            tally.limit = "max_megabytes"
            return
        tally.shared += split.knows(document)
        seen.add(document.sha256)
        size += document.size
        count += 1
        yield Selected(document, split.side(document))


def training_texts(source: Source, corpus: CorpusConfig, max_megabytes: float) -> Iterator[str]:
    """Texts that are trained on, up to `max_megabytes`: what a tokenizer may learn from.

    Where chance has put all documents, being few, on one side, the end of the text is held out, as `encode.write` does,
    and is left out here too.
    """
    sizes = {TRAIN: 0, VALIDATION: 0}
    for selected in select(source, corpus, Split(corpus.validation_fraction), Tally()):
        sizes[selected.side] += selected.document.size
        if all(sizes.values()):
            break
    is_cut = not all(sizes.values())
    documents = select(source, corpus, Split(0 if is_cut else corpus.validation_fraction), Tally())
    texts: Iterator[str] = (
        part for selected in documents if selected.side == TRAIN for part in selected.document.parts()
    )
    if is_cut:
        texts = _beginning(texts, int((1 - corpus.validation_fraction) * sum(sizes.values())))
    size = 0
    for text in texts:
        if size and size + len(text.encode()) > max_megabytes * 1e6:
            return
        size += len(text.encode())
        yield text


def _beginning(texts: Iterable[str], size: int) -> Iterator[str]:
    """The first `size` bytes of all texts together."""
    for text in texts:
        content = text.encode()[:size]
        size -= len(content)
        if content:
            yield content.decode(errors="ignore")  # part of a character may be cut off
