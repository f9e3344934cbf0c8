"""A held-out text of one training stage: its tokens, where its documents begin, and which source each is from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smollm.errors import CorpusError
from smollm.evaluate.overlap import pieces
from smollm.state.tokens import (
    TRAIN,
    VALIDATION,
    Tokens,
    documents_of,
    open_split,
    read_manifest,
    source_of,
    special_ids,
    token_directory,
    tokens_path,
    vocabulary_size,
)

TEXTS = ("pretrain", "finetune")
"""The stages whose texts are measured."""

NO_TEXT = b"\xff"
"""Stands for a special token among the bytes of a text; UTF-8 has no such byte."""


@dataclass(frozen=True)
class HeldOutText:
    name: str
    tokens: Tokens
    offsets: NDArray[np.int64]
    """Where each document begins."""
    names: list[str]
    """Of the documents."""
    source: str
    """Kind of source, as in params.yaml."""

    @classmethod
    def open(cls, workspace: Path, name: str) -> "HeldOutText":
        """The held-out text of the stage `name`."""
        directory = token_directory(workspace, name)
        offsets, names = documents_of(directory, VALIDATION)
        source = str(read_manifest(directory)["source"])
        return cls(name, open_split(directory, VALIDATION), offsets.astype(np.int64), names, source)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, without the end-of-text token."""
        return np.diff(self.offsets, append=len(self.tokens)) - 1

    def sources(self) -> tuple[list[str], NDArray[np.int64]]:
        """The sources, by name, and the number of each document's."""
        documents = [source_of(name, self.source) for name in self.names]
        sources = sorted(set(documents))
        numbers = {source: number for number, source in enumerate(sources)}
        return sources, np.array([numbers[source] for source in documents], np.int64)

    @property
    def is_code(self) -> bool:
        """Whether its documents are Python source code."""
        return self.source == "python"

    def windows(self, length: int, most: int) -> NDArray[np.int64]:
        """Where windows of `length` + 1 tokens begin, spread evenly over the text; at most `most` tokens, at least one.

        Raises:
            CorpusError: not one window fits.
        """
        there = (len(self.tokens) - 1) // length
        if there < 1:
            path = tokens_path(token_directory(Path(), self.name), VALIDATION)
            raise CorpusError(
                f"{path}: must hold {length + 1} tokens, got {len(self.tokens)}; lower evaluate.sequence_length, or "
                "add text"
            )
        count = min(there, max(1, most // length))
        return np.arange(count) * there // count * length


def training_pieces(workspace: Path, name: str) -> Iterator[Tokens]:
    """The training tokens of the stage `name`, in pieces; the file stays on the disk."""
    tokens = open_split(token_directory(workspace, name), TRAIN)
    for piece in pieces(len(tokens)):
        yield tokens[piece]


def training_document(workspace: Path, name: str, position: int) -> str:
    """The name of the training document of the stage `name` that has the token at this position."""
    offsets, names = documents_of(token_directory(workspace, name), TRAIN)
    return names[int(np.searchsorted(offsets, position, side="right")) - 1]


def bytes_of_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """The UTF-8 bytes that each id stands for; `NO_TEXT` for special tokens and ids without a token."""
    alphabet = _byte_alphabet()
    special, added = special_ids(tokenizer), tokenizer.get_added_tokens_decoder()
    texts = [NO_TEXT] * vocabulary_size(tokenizer)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index not in special:
            texts[index] = token.encode() if index in added else bytes(alphabet[character] for character in token)
    return texts


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level BPE token's name stands for (GPT-2's table).

    A byte that prints stands for itself; the others take the characters from U+0100 on, in their order.
    """
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printed)]
    return {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}
