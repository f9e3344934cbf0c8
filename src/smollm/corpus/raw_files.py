"""Finds the user's own files that a stage reads: those below data/raw that its globs match."""

import unicodedata
from pathlib import Path

from smollm.config.corpus import RAW_DATA
from smollm.corpus import tables, text_files
from smollm.errors import CorpusError

PLAIN_TEXT = (".txt", ".md")
"""Suffixes of files that are one document each."""

_SUFFIXES = (*PLAIN_TEXT, *tables.SUFFIXES)


def matching_files(workspace: Path, globs: tuple[str, ...], stage: str) -> list[Path]:
    """The files that the globs match, sorted by path.

    Raises:
        CorpusError: a glob matches none, or one that cannot be used: of another format, below a linked folder, a
            broken link, a Git LFS pointer, or with an odd name.
    """
    setting = f"params.yaml: corpus.{stage}.files"
    matched: set[Path] = set()
    for glob in globs:
        matches = {path for path in _candidates(workspace, glob) if not _is_skipped(_name(path, workspace), glob)}
        if not matches:
            raise CorpusError(f"{setting} must match files, got none for {glob!r}; put text there or fix the glob")
        matched |= matches
        if "**" in glob:  # which does not go through links
            matched |= {path for path in (workspace / RAW_DATA).rglob("*") if path.is_dir() and path.is_symlink()}
    for path in sorted(matched):
        _check(path, _name(path, workspace), workspace, setting)
    return sorted(matched)


def _candidates(workspace: Path, glob: str) -> list[Path]:
    """What the glob matches. If a file has exactly this name, with brackets in it for example, it is that file."""
    if (workspace / glob).is_file():
        return [workspace / glob]
    return [path for path in workspace.glob(glob) if path.is_file() or _is_broken_link(path)]


def _name(path: Path, workspace: Path) -> str:
    return path.relative_to(workspace).as_posix()


def _is_skipped(name: str, glob: str) -> bool:
    """Whether a glob skips a file: DVC's own files, and hidden ones unless the glob names them by a leading dot."""
    return name.endswith(".dvc") or ("/." in name and "/." not in glob)


def _check(path: Path, name: str, workspace: Path, setting: str) -> None:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise CorpusError(
            f"{setting} must match files whose names are UTF-8 and printable, got {name!a}; rename the file"
        )
    if _is_broken_link(path):
        raise CorpusError(f"{setting} must match files, got {name}, a link that leads to none; remove it")
    if path.is_dir() or _is_below_link(path, workspace):
        raise CorpusError(
            f"{setting} must not lead through a linked folder, whose content DVC does not watch, got "
            f"{name}; copy the folder, or link its files one by one"
        )
    if text_files.inner_suffix(path) not in _SUFFIXES:
        raise CorpusError(
            f"{setting} must match {', '.join(_SUFFIXES)} files, or such compressed to "
            f"{', '.join(text_files.OPENERS)}, got {name}; narrow the glob or convert the file"
        )
    text_files.check_is_content(path, name)


def _is_broken_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _is_below_link(path: Path, workspace: Path) -> bool:
    """Whether a folder above is a link; data/raw itself may be one, to another disk, and DVC follows it."""
    raw = workspace / RAW_DATA
    parents = [parent for parent in path.parents if parent.is_relative_to(raw.parent)]
    return any(parent.is_symlink() for parent in parents if parent != raw)
