"""Text for tests: documents given outright, and files below data/raw."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tokenizers import Tokenizer

from smollm.config.corpus import CorpusConfig, CorpusSource, HubDatasetConfig, SourceConfig
from smollm.corpus.document import Document
from smollm.corpus.encode import Encoder
from smollm.corpus.selection import Splitter
from smollm.corpus.source import Source
from smollm.errors import CorpusError

END_OF_TEXT = "<|endoftext|>"

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
"""What Git LFS leaves in place of a file that was not downloaded."""

NO_FILES = SourceConfig(CorpusSource.FILES, (), "text", None, HubDatasetConfig(None, None, "train", None, True))
CORPUS = CorpusConfig(("stdlib",), 1.0, None, 0.3, 0.05, None, NO_FILES, NO_FILES)
"""At most 1 MB, of which 0.3 is held out; near-duplicates are not looked for."""

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}
"""By the ending of a file's name."""


class TextSource(Source):
    """A source whose documents are `texts`, by key."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__("pretrain", CORPUS, Path())
        self.texts = texts

    def documents(self) -> Iterator[Document]:
        return (Document.of(key, text) for key, text in self.texts.items())


def source_of(
    workspace: Path,
    kind: CorpusSource,
    files: tuple[str, ...] = (),
    packages: tuple[str, ...] = ("tqdm",),
    text_column: str = "text",
    dataset: str | None = None,
    streaming: bool = True,
    template: str | None = None,
) -> Source:
    """The pretraining source of a workspace with these settings."""
    config = SourceConfig(
        kind, files, text_column, template, HubDatasetConfig(dataset, None, "train", "main", streaming)
    )
    return Source("pretrain", CorpusConfig(packages, 1.0, None, 0.1, 0.05, None, config, config), workspace)


def files_of(workspace: Path, *globs: str, text_column: str = "text", template: str | None = None) -> Source:
    """The source that reads the files below data/raw that match `globs`, all of them where none is given."""
    return source_of(
        workspace, CorpusSource.FILES, globs or ("data/raw/*",), text_column=text_column, template=template
    )


def put_raw(workspace: Path, name: str, content: bytes) -> None:
    """Write data/raw/<name>."""
    path = workspace / "data" / "raw" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def table_texts(workspace: Path, name: str, content: bytes, column: str = "text") -> list[str]:
    """The texts of a table data/raw/<name> with these bytes; checks the documents' keys."""
    put_raw(workspace, name, content)
    documents = list(files_of(workspace, f"data/raw/{name}", text_column=column).documents())
    assert [document.key for document in documents] == [f"data/raw/{name}#{index}" for index in range(len(documents))]
    return [document.text for document in documents]


def table_refusal(workspace: Path, name: str, content: bytes) -> str:
    """The error that refuses such a table, which is one short line."""
    with pytest.raises(CorpusError) as caught:
        table_texts(workspace, name, content)
    message = str(caught.value)
    assert message.isprintable()  # one line
    assert len(message) < 600
    return message


def write_tokens(
    directory: Path,
    source: Source,
    tokenizer: Tokenizer,
    splitter: Splitter | None = None,
    corpus: CorpusConfig = CORPUS,
    on_progress: Callable[[int], object] = lambda text_bytes: None,
) -> dict[str, Any]:
    """Write the token files of a source and return their manifest."""
    encoder = Encoder(tokenizer, END_OF_TEXT, corpus, splitter or Splitter(corpus.validation_fraction))
    return encoder.write(directory, source, on_progress)
