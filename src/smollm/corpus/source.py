"""The documents of a training stage's text, from whichever source it has; each reading gives the same ones in order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm.config.corpus import CorpusConfig, CorpusSource, SourceConfig
from smollm.corpus import packages, raw_files, tables, text_files
from smollm.corpus.document import Document, in_parts
from smollm.corpus.row_text import RowFormat
from smollm.errors import CorpusError
from smollm.state.files import file_digest


@dataclass
class LeftOutCounts:
    """How many documents were left out while a source was read, by reason."""

    blank: int = 0
    """Without any text."""
    null: int = 0
    """Rows of a table whose text is null."""
    not_utf8: int = 0
    """Files of the python sources in another encoding."""


class Source:
    """The documents of one training stage, to be read as often as needed."""

    def __init__(self, stage: str, corpus: CorpusConfig, workspace: Path) -> None:
        self.stage = stage
        self.config: SourceConfig = getattr(corpus, stage)
        self.packages = corpus.packages
        self.workspace = workspace
        self.left_out = LeftOutCounts()
        """Counts of the current reading, or of the last one."""
        self.signatures: dict[str, bytes] = {}
        """Signatures of some of the texts read so far, by sha256; see `near_duplicates.signed`."""
        self._row_format = RowFormat(stage, self.config.text_column, self.config.template, corpus.max_null_fraction)
        self._summaries: dict[Path, tuple[text_files.FileState | None, text_files.TextSummary]] = {}

    def documents(self) -> Iterator[Document]:
        """Yield each document that is not blank.

        Raises:
            CorpusError: a package or file is missing, or one of the user's files cannot be read.
        """
        readers: dict[CorpusSource, Callable[[], Iterator[Document]]] = {
            CorpusSource.PYTHON: lambda: packages.code(self.packages, self._count_not_utf8),
            CorpusSource.PYTHON_DOCS: lambda: packages.documentation(self.packages, self._count_not_utf8),
            CorpusSource.FILES: self._files,
            CorpusSource.HUB: self._hub,
        }
        self.left_out = LeftOutCounts()
        for document in readers[self.config.source]():
            if document.is_blank:
                self.left_out.blank += 1
            else:
                yield document

    def versions(self) -> dict[str, str]:
        """What the text was made from: versions of Python and packages, DVC's md5 of files, or a hub revision."""
        if self.config.source is CorpusSource.HUB:
            return {str(self.config.hub.dataset): str(self.config.hub.revision)}
        if self.config.source is CorpusSource.FILES:
            files = self._matching_files()
            return {path.relative_to(self.workspace).as_posix(): file_digest(path, "md5") for path in files}
        return packages.versions(self.packages)

    def installed_versions(self) -> dict[str, str]:
        """Versions of the installed packages that the text comes from; DVC does not see when these change."""
        is_installed = self.config.source in (CorpusSource.PYTHON, CorpusSource.PYTHON_DOCS)
        return packages.versions(self.packages) if is_installed else {}

    def _count_not_utf8(self) -> None:
        self.left_out.not_utf8 += 1

    def _matching_files(self) -> list[Path]:
        return raw_files.matching_files(self.workspace, self.config.files, self.stage)

    def _files(self) -> Iterator[Document]:
        for path in self._matching_files():
            name = path.relative_to(self.workspace).as_posix()
            suffix, before = text_files.inner_suffix(path), text_files.FileState.of(path)
            summary = None if suffix == ".parquet" else self._summary(path, name)
            if summary is not None and (suffix in raw_files.PLAIN_TEXT or summary.is_blank):
                parts = self._parts(path, name, before)
                yield Document(name, summary.size, summary.sha256, summary.is_blank, parts)
            else:
                yield from self._rows(tables.rows(path, name, self.config.text_column), name, "fix the file")
                text_files.check_unchanged(before, path, name)

    def _summary(self, path: Path, name: str) -> text_files.TextSummary:
        """Size and digest of a text file. The first call reads the file to its end and checks that it is UTF-8."""
        if path not in self._summaries:
            before = text_files.FileState.of(path)
            self._summaries[path] = (before, text_files.summarize(path, name))
        before, summary = self._summaries[path]
        text_files.check_unchanged(before, path, name)
        return summary

    def _parts(self, path: Path, name: str, before: text_files.FileState | None) -> Callable[[], Iterator[str]]:
        def parts() -> Iterator[str]:
            yield from in_parts(text_files.chunks(path, name))
            text_files.check_unchanged(before, path, name)

        return parts

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
        """The documents of a table, one per row; an error while reading it ends in the advice `fix`."""
        nulls = count = 0
        try:
            for index, (place, row) in enumerate(rows):
                count = index + 1
                text = self._row_format.text(row, f"{name}: {place}")
                if text is None:
                    nulls += 1
                    self.left_out.null += 1
                    self._row_format.check_nulls(nulls, count, False, name)
                else:
                    yield Document.of(f"{name}#{index}", text)
        except CorpusError:
            raise
        except Exception as error:  # the libraries' errors have no common base
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise CorpusError(f"{name}: must be readable to its end, got {reason}; {fix}") from None
        self._row_format.check_nulls(nulls, count, True, name)


def _load_dataset() -> Callable[..., Any]:
    """`datasets.load_dataset`, imported here because the import is slow and only source hub needs it."""
    import datasets

    datasets.config.TORCH_AVAILABLE = False  # else a stream imports torch: 200 MB, for nothing that is used here
    return datasets.load_dataset
