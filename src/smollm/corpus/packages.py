"""Sources python and python-docs: the source files or the documentation of installed packages."""

import ast
import hashlib
import importlib.metadata
import os
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from smollm.corpus.document import Document
from smollm.errors import CorpusError

_NOT_DOCUMENTATION = ("license", "licence", "copying", "notice", "authors", "contributors")
_TESTS = frozenset({"test", "tests"})

STDLIB = "stdlib"
"""Stands for the standard library in a list of packages."""


def code(packages: tuple[str, ...], not_utf8: Callable[[], object]) -> Iterator[Document]:
    """Yield the Python source files of `packages`.

    Args:
        packages: names of installed distributions, and `STDLIB`.
        not_utf8: called for each file that is left out because it is not UTF-8.

    Raises:
        CorpusError: a package is not installed.
    """
    for key, path in _files(packages, (".py",)):
        text = _read(path, not_utf8)
        if text is not None:
            yield Document.of(key, text)


def documentation(packages: tuple[str, ...], not_utf8: Callable[[], object]) -> Iterator[Document]:
    """Yield docstrings, documentation files and descriptions of `packages`, except those in test folders.

    A file's documentation has the same key as its code. Arguments and errors as for `code`.
    """
    for key, path in _files(packages, (".py", ".md", ".rst", ".txt")):
        has_docs = path.suffix == ".py" or _is_documentation(path)
        if not has_docs or not _TESTS.isdisjoint(key.split("/")):
            continue
        text = _read(path, not_utf8)
        if text is not None:
            yield Document.of(key, _docstrings(text) if path.suffix == ".py" else text)
    for name in packages:
        if name != STDLIB:
            description = _distribution(name).metadata.json.get("description", "")
            yield Document.of(f"{name}/README", str(description))


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of each package."""
    named = {name: _distribution(name).version for name in packages if name != STDLIB}
    return {"python": platform.python_version(), **named}


def _files(packages: tuple[str, ...], suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Files of the packages as (key, path), sorted by a hash of the key, so that the first N are a fair sample."""
    files: dict[str, Path] = {}
    for name in packages:
        if name == STDLIB:
            library = Path(sysconfig.get_paths()["stdlib"])
            for folder, below, names in os.walk(library):
                below[:] = [inner for inner in below if inner not in ("site-packages", "dist-packages")]
                for path in (Path(folder, name) for name in names):
                    if path.suffix in suffixes:
                        files[f"{STDLIB}/{path.relative_to(library).as_posix()}"] = path
        else:
            for entry in _distribution(name).files or []:
                path = Path(str(entry.locate()))
                if path.suffix in suffixes and ".." not in entry.parts:
                    files[entry.as_posix()] = path
    return sorted(files.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def _read(path: Path, not_utf8: Callable[[], object]) -> str | None:
    """The file's text; None if the file is missing or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        not_utf8()
        return None


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
