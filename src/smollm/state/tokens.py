"""The format of the files between `tokenize` and training: token ids, manifest, tokenizer."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smollm.errors import CorpusError

if TYPE_CHECKING:
    import pandas as pd

Tokens = NDArray[np.unsignedinteger]

STAGES = ("pretrain", "finetune")
"""The training stages, in order; each has its own text and makes a model."""

SPLITS = TRAIN, VALIDATION = "train", "validation"
"""The parts of a stage's text: to train on, and held out."""

BY_DOCUMENT = "by document"
"""The manifest's `split` for a text that is split in the usual way: each document is in one split."""


def token_directory(base: Path, stage: str) -> Path:
    """The folder with the token files of a stage's text.

    Args:
        base: the workspace, or a live state of `tokenize`; empty for the path relative to these.
        stage: the training stage.
    """
    return base / "data" / "tokens" / stage


def tokens_path(directory: Path, split: str) -> Path:
    """The file with the token ids of a split."""
    return directory / f"{split}.bin"


def offsets_path(directory: Path, split: str) -> Path:
    """The file that says where each document of a split begins in its token file."""
    return directory / f"{split}.offsets.bin"


def documents_path(directory: Path) -> Path:
    """The file that lists the documents of both splits."""
    return directory / "documents.tsv"


def manifest_path(directory: Path) -> Path:
    """The file that describes the token files; it is written last."""
    return directory / "manifest.json"


def tokenizer_path(base: Path) -> Path:
    """The tokenizer's file; `base` is as for `token_directory`."""
    return base / "data" / "tokenizer" / "tokenizer.json"


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smaller of uint16 and uint32 that holds every id below `vocab_size`."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def open_tokens(path: Path, dtype: str) -> Tokens:
    """Map a token file into memory, read-only; its pages are loaded as they are used."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    with path.open("rb") as file:
        return np.memmap(file, dtype=dtype, mode="r")


def open_split(directory: Path, split: str) -> Tokens:
    """The tokens of a split, as `open_tokens` gives them.

    Raises:
        CorpusError: `directory` has no manifest.
    """
    return open_tokens(tokens_path(directory, split), read_manifest(directory)["dtype"])


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of the token files in `directory`.

    Raises:
        CorpusError: there is none.
    """
    try:
        manifest: dict[str, Any] = json.loads(manifest_path(directory).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorpusError(
            f"{directory}: must hold what `tokenize` writes, got no manifest.json; run the whole `dvc repro`"
        ) from None
    return manifest


def documents_table(directory: Path) -> "Iterator[pd.DataFrame]":
    """All documents of a stage's text, some at a time: split, bytes, tokens, sha256 and key."""
    import pandas as pd  # slow to import, and used by reports alone

    reader = pd.read_csv(
        documents_path(directory), sep="\t", chunksize=200_000, keep_default_na=False, dtype={"key": str}
    )
    with reader:
        yield from reader


def source_of(key: str, kind: str) -> str:
    """The package, file or dataset that a document is from.

    Args:
        key: of the document, as in `documents_table`.
        kind: of the source, as in the manifest.
    """
    return key.partition("/")[0] if kind.startswith("python") else re.sub(r"#\d+$", "", key)


def documents_of(directory: Path, split: str) -> tuple[NDArray[np.uint64], list[str]]:
    """Where each document of a split's token file begins, and the document's name."""
    offsets = np.fromfile(offsets_path(directory, split), np.uint64)
    names: dict[str, list[str]] = {TRAIN: [], VALIDATION: []}
    for table in documents_table(directory):
        for name, keys in table.groupby("split")["key"]:
            names[str(name)] += keys.tolist()
    if str(read_manifest(directory)["split"]) == BY_DOCUMENT:
        return offsets, names[split]
    # the end of the whole text is held out; a document that begins before it and ends in it is in both splits
    joined = names[TRAIN] + names[VALIDATION]
    return offsets, joined[: len(offsets)] if split == TRAIN else joined[-len(offsets) :]


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json that `tokenize` wrote; special tokens in a text are plain text to it."""
    return as_plain_text(Tokenizer.from_file(str(path)))


def as_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """Make `tokenizer` encode the whole of any text, and special tokens in it as plain text."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the highest id; ids may have gaps."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """UTF-8 bytes that each id stands for, (V,); 0 for special tokens.

    In byte-level BPE each character of a token's name is one byte of text; a token that was added
    is named by its text.
    """
    lengths = np.zeros(vocabulary_size(tokenizer), np.int64)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        lengths[index] = len(token)
    for index, added in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    return lengths


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids that stand for no text, such as end-of-text."""
    return {index for index, added in tokenizer.get_added_tokens_decoder().items() if added.special}
