"""The text of a training stage: which documents, always the same ones in the same order."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from smollm import packages, text_files
from smollm.config.corpus import CorpusConfig, CorpusSource, SourceConfig
from smollm.document import Document, in_parts
from smollm.errors import CorpusError
from smollm.files import file_digest

_TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_READERS = {".txt": None, ".md": None, **_TABLES}


class Source:
    """The documents of one training stage, to be read as often as needed."""

    def __init__(self, stage: str, corpus: CorpusConfig, workspace: Path) -> None:
        self.stage = stage
        self.config: SourceConfig = getattr(corpus, stage)
        self.packages = corpus.packages
        self.workspace = workspace
        self.blank = 0
        """Documents without any text that the last reading left out."""
        self.not_utf8 = 0
        """Files of the python sources that the last reading left out, not being UTF-8."""
        self._digests: dict[Path, tuple[text_files.State, text_files.Contents]] = {}

    def documents(self) -> Iterator[Document]:
        """Yield each document that is not blank.

        Raises:
            CorpusError: a package or file is missing, or a file of the user's cannot be read.
        """
        readers: dict[CorpusSource, Callable[[], Iterator[Document]]] = {
            CorpusSource.PYTHON: lambda: packages.code(self.packages, self._count_not_utf8),
            CorpusSource.PYTHON_DOCS: lambda: packages.documentation(self.packages, self._count_not_utf8),
            CorpusSource.FILES: self._files,
            CorpusSource.HUB: self._hub,
        }
        self.blank = self.not_utf8 = 0
        for document in readers[self.config.source]():
            if document.is_blank:
                self.blank += 1
            else:
                yield document

    def versions(self) -> dict[str, str]:
        """What the text is made from: versions of Python and packages, DVC's md5 of files, or the hub's revision."""
        if self.config.source is CorpusSource.HUB:
            return {str(self.config.hub.dataset): str(self.config.hub.revision)}
        if self.config.source is CorpusSource.FILES:
            files = self._matching_files()
            return {path.relative_to(self.workspace).as_posix(): file_digest(path, "md5") for path in files}
        return packages.versions(self.packages)

    def _count_not_utf8(self) -> None:
        self.not_utf8 += 1

    def _files(self) -> Iterator[Document]:
        for path in self._matching_files():
            name = path.relative_to(self.workspace).as_posix()
            reader = _READERS[text_files.ending(path)]
            before = text_files.State.of(path)
            if reader is None:
                contents = self._contents(path, name)
                yield Document(name, contents.size, contents.sha256, contents.is_blank, self._parts(path, name, before))
            else:
                if reader != "parquet":
                    self._contents(path, name)  # checks that it is UTF-8
                yield from self._rows(lambda: _stream(reader, path), name, "mend the file")  # noqa: B023 - used at once
                before.check(path, name)

    def _contents(self, path: Path, name: str) -> text_files.Contents:
        """What is in a text file, found out by the first reading."""
        state = text_files.State.of(path)
        if path not in self._digests:
            self._digests[path] = (state, text_files.contents(path, name))
        first, contents = self._digests[path]
        first.check(path, name)
        return contents

    def _parts(self, path: Path, name: str, state: text_files.State) -> Callable[[], Iterator[str]]:
        def parts() -> Iterator[str]:
            yield from in_parts(text_files.chunks(path, name))
            state.check(path, name)

        return parts

    def _matching_files(self) -> list[Path]:
        where = f"params.yaml: corpus.{self.stage}.files"
        found: set[Path] = set()
        for pattern in self.config.files:
            matches = {path for path in self.workspace.glob(pattern) if path.is_file() or _leads_nowhere(path)}
            if not matches:
                raise CorpusError(
                    f"{where} must match files, got none for {pattern!r}; put text there or mend the glob"
                )
            found |= matches
        for path in sorted(found):
            name = path.relative_to(self.workspace).as_posix()
            if _leads_nowhere(path):
                raise CorpusError(f"{where} must match files, got {name}, a link that leads to none; remove it")
            if _linked_parents(path, self.workspace):
                raise CorpusError(
                    f"{where} must not lead through a linked folder, whose content DVC does not watch, got "
                    f"{name}; copy the folder, or link its files one by one"
                )
            if text_files.ending(path) not in _READERS:
                raise CorpusError(
                    f"{where} must match {', '.join(_READERS)} files, or such compressed to "
                    f"{', '.join(text_files.OPENERS)}, got {name}; narrow the glob or convert the file"
                )
        return sorted(found)

    def _hub(self) -> Iterator[Document]:
        from datasets import load_dataset  # slow to import, and not needed by the default source

        hub = self.config.hub
        try:
            rows = load_dataset(hub.dataset, hub.name, split=hub.split, revision=hub.revision, streaming=hub.streaming)
        except Exception as error:  # the library's errors have no common base
            raise CorpusError(
                f"params.yaml: corpus.{self.stage}.hub.dataset must be a dataset that can be reached, "
                f"got {hub.dataset!r}: {str(error).splitlines()[0]}; check the name, the revision and the network, and "
                "for a gated or private one log in with `hf auth login`, or set HF_TOKEN"
            ) from None
        yield from self._rows(lambda: rows, str(hub.dataset), "check the network and run again")

    def _rows(self, stream: Callable[[], Iterable[dict[str, Any]]], name: str, fix: str) -> Iterator[Document]:
        """Documents of a table, one a row; `stream` opens it, `fix` is for one that breaks off."""
        column = self.config.text_column
        try:
            for index, row in enumerate(stream()):
                if column not in row:
                    raise CorpusError(
                        f"{name}: must have the column {column!r} (corpus.{self.stage}.text_column), "
                        f"got {', '.join(row)}; name the one with the text"
                    )
                if not isinstance(row[column], str):
                    raise CorpusError(
                        f"{name}: row {index}: column {column!r} must hold text, got {row[column]!r}; "
                        "name another column or mend the row"
                    )
                yield Document.of(f"{name}#{index}", row[column])
        except CorpusError:
            raise
        except Exception as error:  # the library's errors have no common base
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise CorpusError(f"{name}: must be readable to its end, got {reason}; {fix}") from None


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _linked_parents(path: Path, workspace: Path) -> list[Path]:
    return [parent for parent in path.parents if parent.is_relative_to(workspace / "data") and parent.is_symlink()]


def _stream(reader: str, path: Path) -> Iterable[dict[str, Any]]:
    """Rows of a file, a few at a time."""
    from datasets import load_dataset

    rows: Iterable[dict[str, Any]] = load_dataset(reader, data_files=str(path), split="train", streaming=True)
    return rows
