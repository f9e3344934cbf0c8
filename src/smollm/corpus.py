"""Sources of text: each yields documents, always the same ones in the same order."""

import ast
import codecs
import hashlib
import importlib.metadata
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm.config.corpus import CorpusConfig, CorpusSource, SourceConfig
from smollm.errors import CorpusError
from smollm.files import file_digest

_READERS = {".txt": None, ".md": None, ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_NOT_DOCUMENTATION = ("license", "licence", "copying", "notice", "authors", "contributors")


@dataclass(frozen=True)
class Document:
    key: str
    """Where it comes from; decides its side of the split, for code and for its documentation alike."""
    text: str


class Source:
    """The documents of one training stage, to be read as often as needed."""

    def __init__(self, stage: str, corpus: CorpusConfig, workspace: Path) -> None:
        self.stage = stage
        self.config: SourceConfig = getattr(corpus, stage)
        self.packages = corpus.packages
        self.workspace = workspace
        self.not_utf8 = 0
        """Files of the python sources that the last reading left out, not being UTF-8."""

    def documents(self) -> Iterator[Document]:
        """Yield each document that is not blank.

        Raises:
            CorpusError: a package or file is missing, or a file of the user's cannot be read.
        """
        readers = {
            CorpusSource.PYTHON: self._python,
            CorpusSource.PYTHON_DOCS: self._python_docs,
            CorpusSource.FILES: self._files,
            CorpusSource.HUB: self._hub,
        }
        self.not_utf8 = 0
        for document in readers[self.config.source]():
            if document.text.strip():
                yield document

    def versions(self) -> dict[str, str]:
        """What the text is made from: versions of Python and packages, DVC's md5 of files, or the hub's revision."""
        if self.config.source is CorpusSource.HUB:
            return {str(self.config.hub.dataset): str(self.config.hub.revision)}
        if self.config.source is CorpusSource.FILES:
            files = self._matching_files()
            return {path.relative_to(self.workspace).as_posix(): file_digest(path, "md5") for path in files}
        named = {name: _distribution(name).version for name in self.packages if name != "stdlib"}
        return {"python": platform.python_version(), **named}

    def _python(self) -> Iterator[Document]:
        for key, path in self._package_files((".py",)):
            text = self._read(path)
            if text is not None:
                yield Document(key, text)

    def _python_docs(self) -> Iterator[Document]:
        files = self._package_files((".py", ".md", ".rst", ".txt"))
        for key, path in files:
            has_docs = key.startswith("stdlib/") if path.suffix == ".py" else _is_documentation(path)
            if not has_docs or "/test/" in key:
                continue
            text = self._read(path)
            if text is not None:
                yield Document(key, _docstrings(text) if path.suffix == ".py" else text)
        for name in self.packages:
            if name != "stdlib":
                description = _distribution(name).metadata.json.get("description", "")
                yield Document(f"{name}/README", str(description))

    def _package_files(self, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
        """Files of the packages as (key, path), in an order that is random but fixed.

        Any first part of the list is then a fair sample of the whole.
        """
        files: dict[str, Path] = {}
        for name in self.packages:
            if name == "stdlib":
                library = Path(sysconfig.get_paths()["stdlib"])
                for path in library.rglob("*"):
                    inside = path.relative_to(library)
                    if path.suffix in suffixes and not {"site-packages", "dist-packages"} & set(inside.parts):
                        files[f"stdlib/{inside.as_posix()}"] = path
            else:
                for entry in _distribution(name).files or []:
                    path = Path(str(entry.locate()))
                    if path.suffix in suffixes and ".." not in entry.parts:
                        files[entry.as_posix()] = path
        return sorted(files.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())

    def _read(self, path: Path) -> str | None:
        """The file's text, or None for the few that are listed and gone, or in another encoding."""
        try:
            return path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            self.not_utf8 += 1
            return None

    def _files(self) -> Iterator[Document]:
        for path in self._matching_files():
            name = path.relative_to(self.workspace).as_posix()
            reader = _READERS[path.suffix.lower()]
            if reader != "parquet":
                _check_utf8(path, name)
            if reader is None:
                yield Document(name, path.read_bytes().decode("utf-8"))
            else:
                yield from self._rows(lambda: _stream(reader, path), name)  # noqa: B023 - used at once

    def _matching_files(self) -> list[Path]:
        where = f"params.yaml: corpus.{self.stage}.files"
        found: set[Path] = set()
        for pattern in self.config.files:
            matches = {path for path in self.workspace.glob(pattern) if path.is_file()}
            if not matches:
                raise CorpusError(
                    f"{where} must match files, got none for {pattern!r}; put text there or mend the glob"
                )
            found |= matches
        for path in sorted(found):
            if _linked_parents(path, self.workspace):
                raise CorpusError(
                    f"{where} must not lead through a linked folder, whose content DVC does not watch, got "
                    f"{path.relative_to(self.workspace)}; copy the folder, or link its files one by one"
                )
            if path.suffix.lower() not in _READERS:
                raise CorpusError(
                    f"{where} must match {', '.join(_READERS)} files, got {path.relative_to(self.workspace)}; "
                    "narrow the glob or convert the file"
                )
        return sorted(found)

    def _hub(self) -> Iterator[Document]:
        from datasets import load_dataset  # slow to import, and not needed by the default source

        hub = self.config.hub
        try:
            rows = load_dataset(hub.dataset, hub.name, split=hub.split, revision=hub.revision, streaming=True)
        except Exception as error:  # the library's errors have no common base
            raise CorpusError(
                f"params.yaml: corpus.{self.stage}.hub.dataset must be a dataset that can be reached, "
                f"got {hub.dataset!r}: {str(error).splitlines()[0]}; check the name, the revision and the network"
            ) from None
        yield from self._rows(lambda: rows, str(hub.dataset))

    def _rows(self, stream: Callable[[], Iterable[dict[str, Any]]], name: str) -> Iterator[Document]:
        """Documents of a table, one a row; `stream` opens it."""
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
                yield Document(f"{name}#{index}", row[column])
        except CorpusError:
            raise
        except Exception as error:  # the library's errors have no common base
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise CorpusError(f"{name}: must be readable, got {reason}; mend the file") from None


def _linked_parents(path: Path, workspace: Path) -> list[Path]:
    return [parent for parent in path.parents if parent.is_relative_to(workspace / "data") and parent.is_symlink()]


def _stream(reader: str, path: Path) -> Iterable[dict[str, Any]]:
    """Rows of a file, a few at a time."""
    from datasets import load_dataset

    rows: Iterable[dict[str, Any]] = load_dataset(reader, data_files=str(path), split="train", streaming=True)
    return rows


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise CorpusError(
            f"params.yaml: corpus.packages must name installed packages, got {name!r}; "
            f"install it (`pip install {name}`) or take it off the list"
        ) from None


def _is_documentation(path: Path) -> bool:
    if path.name.lower().startswith(_NOT_DOCUMENTATION) or any(part.endswith(".dist-info") for part in path.parts):
        return False
    return path.suffix in (".md", ".rst") or any(part in ("doc", "docs") for part in path.parts)


def _docstrings(source: str) -> str:
    """The docstrings of a module, each under the name of what it describes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    return "\n\n\n".join(_descriptions(tree))


def _descriptions(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text:
        yield text if isinstance(node, ast.Module) else f"{node.name}\n\n{text}"
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _descriptions(child)


def _check_utf8(path: Path, name: str) -> None:
    """
    Raises:
        CorpusError: the file is not UTF-8; says at which byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                byte = position - pending + error.start
                raise CorpusError(
                    f"{name}: must be UTF-8, got another byte ({error.object[error.start]:#04x}) at byte {byte}; "
                    f"convert it, e.g. iconv -f latin1 -t utf-8"
                ) from None
            if not chunk:
                return
            position += len(chunk)
