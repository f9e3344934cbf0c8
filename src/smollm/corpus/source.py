"""The text of a training stage: which documents, always the same ones in the same order."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smollm.config.corpus import RAW_DATA, CorpusConfig, CorpusSource, SourceConfig
from smollm.corpus import packages, tables, text_files
from smollm.corpus.document import Document, in_parts
from smollm.errors import CorpusError
from smollm.state.files import file_digest

_TEXTS = (".txt", ".md")
_ENDINGS = (*_TEXTS, *tables.ENDINGS)


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
        self._contents_of: dict[Path, tuple[text_files.State | None, text_files.Contents]] = {}

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
            ending, before = text_files.ending(path), text_files.State.of(path)
            contents = None if ending == ".parquet" else self._contents(path, name)
            if contents is not None and (ending in _TEXTS or contents.is_blank):
                parts = self._parts(path, name, before)
                yield Document(name, contents.size, contents.sha256, contents.is_blank, parts)
            else:
                yield from self._rows(tables.rows(path, name, self.config.text_column), name, "mend the file")
                text_files.check_same(before, path, name)

    def _contents(self, path: Path, name: str) -> text_files.Contents:
        """What is in a file of text, found out by the first reading, which checks that it is UTF-8 to its end."""
        if path not in self._contents_of:
            before = text_files.State.of(path)
            self._contents_of[path] = (before, text_files.contents(path, name))
        before, contents = self._contents_of[path]
        text_files.check_same(before, path, name)
        return contents

    def _parts(self, path: Path, name: str, before: text_files.State | None) -> Callable[[], Iterator[str]]:
        def parts() -> Iterator[str]:
            yield from in_parts(text_files.chunks(path, name))
            text_files.check_same(before, path, name)

        return parts

    def _matching_files(self) -> list[Path]:
        where = f"params.yaml: corpus.{self.stage}.files"
        found: set[Path] = set()
        for pattern in self.config.files:
            matches = {
                path
                for path in self.workspace.glob(pattern)
                if (path.is_file() or _leads_nowhere(path))
                and not _is_passed_over(path.relative_to(self.workspace).as_posix(), pattern)
            }
            if not matches:
                raise CorpusError(
                    f"{where} must match files, got none for {pattern!r}; put text there or mend the glob"
                )
            found |= matches
            if "**" in pattern:  # which does not go through links
                found |= {
                    path for path in (self.workspace / RAW_DATA).rglob("*") if path.is_dir() and path.is_symlink()
                }
        for path in sorted(found):
            name = path.relative_to(self.workspace).as_posix()
            if not name.isprintable():
                raise CorpusError(
                    f"{where} must match files whose names are UTF-8 and printable, got {name!a}; rename the file"
                )
            if _leads_nowhere(path):
                raise CorpusError(f"{where} must match files, got {name}, a link that leads to none; remove it")
            if path.is_dir() or _linked_parents(path, self.workspace):
                raise CorpusError(
                    f"{where} must not lead through a linked folder, whose content DVC does not watch, got "
                    f"{name}; copy the folder, or link its files one by one"
                )
            if text_files.ending(path) not in _ENDINGS:
                raise CorpusError(
                    f"{where} must match {', '.join(_ENDINGS)} files, or such compressed to "
                    f"{', '.join(text_files.OPENERS)}, got {name}; narrow the glob or convert the file"
                )
        return sorted(found)

    def _hub(self) -> Iterator[Document]:
        load_dataset = _load_dataset()
        hub = self.config.hub
        try:
            rows = load_dataset(hub.dataset, hub.name, split=hub.split, revision=hub.revision, streaming=hub.streaming)
        except Exception as error:  # the library's errors have no common base
            raise CorpusError(
                f"params.yaml: corpus.{self.stage}.hub.dataset must be a dataset that can be reached, "
                f"got {hub.dataset!r}: {str(error).splitlines()[0]}; check the name, the revision and the network, and "
                "for a gated or private one log in with `hf auth login`, or set HF_TOKEN"
            ) from None
        places = ((f"row {index}", row) for index, row in enumerate(rows))
        yield from self._rows(places, str(hub.dataset), "check the network and run again")

    def _rows(self, rows: Iterator[tables.Row], name: str, fix: str) -> Iterator[Document]:
        """Documents of a table, one a row; `fix` is for one that breaks off."""
        column = self.config.text_column
        try:
            for index, (place, row) in enumerate(rows):
                if not isinstance(row, dict) or column not in row:
                    found = list(row) if isinstance(row, dict) else row
                    raise CorpusError(
                        f"{name}: {place}: must have the column {column!r} (corpus.{self.stage}.text_column), "
                        f"got {repr(found)[:200]}; name the one with the text or mend the row"
                    )
                if not isinstance(row[column], str):
                    raise CorpusError(
                        f"{name}: {place}: column {column!r} must hold text, got {repr(row[column])[:200]}; "
                        "name another column or mend the row"
                    )
                yield Document.of(f"{name}#{index}", row[column])
        except CorpusError:
            raise
        except Exception as error:  # the libraries' errors have no common base
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise CorpusError(f"{name}: must be readable to its end, got {reason}; {fix}") from None


def _is_passed_over(name: str, pattern: str) -> bool:
    """Whether a glob leaves a file out: one of DVC's own, or a hidden one, unless it asks for hidden ones."""
    return name.endswith(".dvc") or ("/." in name and "/." not in pattern)


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _linked_parents(path: Path, workspace: Path) -> list[Path]:
    return [parent for parent in path.parents if parent.is_relative_to(workspace / "data") and parent.is_symlink()]


def _load_dataset() -> Callable[..., Any]:
    """The library's function; slow to import, and needed by the hub alone."""
    import datasets

    datasets.config.TORCH_AVAILABLE = False  # else a stream imports torch: 200 MB, for nothing that is used here
    return datasets.load_dataset
