"""The states on the disk: which of them are kept, and which are removed.

An edit changes a stage's fingerprint, so that it starts in a new state and abandons the one before. What was trained
there is kept, so that the stage resumes when the edit is undone: every abandoned state until the stage has finished,
the newest two after that.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm.state import journal
from smollm.state.files import file_stats, read_json
from smollm.state.lock import Holder, StateLock
from smollm.state.workspace import Workspace

VERSION = "version.json"
"""File of a state: the stage's command, inputs and params that its fingerprint stands for."""

_WORK = ("checkpoints", "data")
"""Folders of a state that a stage resumes from: checkpoints of training, encoded text of tokenize."""

KEPT = 2
"""How many abandoned states of a stage, the newest, are kept once it has finished."""

_REQUEUE_SECONDS = 7 * 24 * 3600.0
"""DVC removes the folder of a queued experiment that was killed; queued again within this time, it resumes."""


@dataclass(frozen=True)
class SavedState:
    """A state on the disk."""

    stage: str
    directory: Path
    """Named by the fingerprint."""

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.directory.name}"

    @property
    def is_complete(self) -> bool:
        """Whether the work is done and only its outputs may be missing."""
        return (self.directory / "complete").exists()

    @property
    def holds_work(self) -> bool:
        """Whether there is anything to resume from; the journal alone is not enough."""
        made = (path for folder in _WORK for path in _entries(self.directory / folder))
        return self.is_complete or any(not path.name.startswith(".") for path in made)

    @property
    def last_used(self) -> float:
        """When any of its files was written last, in seconds since the epoch; 0 where there is none."""
        return max((entry.st_mtime for entry in file_stats(self.directory)), default=0.0)

    @property
    def step(self) -> int:
        """The last step that it has recorded, 0 before the first."""
        records = journal.read(self.directory / "journal.jsonl")
        return max((record.step for record, _ in records if record.kind == "step"), default=0)

    @property
    def version(self) -> dict[str, Any]:
        """The command, inputs and params that the fingerprint stands for, empty where they were not written."""
        return read_json(self.directory / VERSION)

    @property
    def holder(self) -> Holder:
        """The process that holds the state, or held it last."""
        return Holder.read(self.directory / "lock")

    @property
    def bytes(self) -> int:
        return sum(entry.st_size for entry in file_stats(self.directory))


def saved_states(workspace: Workspace) -> Iterator[SavedState]:
    """All states of the repository."""
    for stage in _entries(workspace.root / ".resume"):
        for directory in _entries(stage):
            if not directory.name.startswith("."):
                yield SavedState(stage.name, directory)


def abandoned_states(workspace: Workspace, stage: str, current: Path | None) -> list[SavedState]:
    """The states of a stage, other than the `current` one, that this workspace could go back to, the newest first."""
    others = (state for state in saved_states(workspace) if state.stage == stage and state.directory != current)
    own = (state for state in others if state.holds_work and not _is_for_others(state, workspace))
    return sorted(own, key=_last_used, reverse=True)


def remove_unneeded(
    workspace: Workspace,
    say: Callable[[str], None],
    on_removal: Callable[[Path], None],
    current: Path | None = None,
) -> None:
    """Remove the states that nobody will resume, unless a process holds them.

    These are: every state whose result DVC has recorded; of a stage with a recorded result, all abandoned states but
    the newest; of the stage that starts, abandoned states with nothing to resume from.

    Args:
        workspace: whose dvc.lock tells what DVC has recorded.
        say: prints a line for the user.
        on_removal: called with the folder of each state before it is removed; an OSError keeps it.
        current: the state of the stage that starts; None: DVC has brought every stage up to date.
    """

    def announced(directory: Path) -> None:
        say(f"{directory.parent.name}: removing the state of a run with other inputs ({directory.name})")
        on_removal(directory)

    starting = None if current is None else current.parent.name
    others = [state for state in saved_states(workspace) if state.directory != current]
    own = [state for state in others if not _is_for_others(state, workspace)]
    for stage in sorted({state.stage for state in own}):
        of_stage = sorted((state for state in own if state.stage == stage), key=_last_used, reverse=True)
        recorded = [s for s in of_stage if s.is_complete and workspace.is_recorded(stage, s.directory.name)]
        is_finished = starting is None or bool(recorded)
        if is_finished or stage == starting:
            abandoned = [state for state in of_stage if state not in recorded]
            kept = [state for state in abandoned if state.holds_work and not _is_done_elsewhere(state, workspace)]
            for state in abandoned:
                if state not in (kept[:KEPT] if is_finished else kept):
                    _remove_if_possible(state, announced)
        for state in recorded:
            _remove_if_possible(state, on_removal)
    for grave in (workspace.root / ".resume").glob("*/.*"):  # of a process that was killed while it removed a state
        shutil.rmtree(grave, ignore_errors=True)


def remove(state: SavedState, on_removal: Callable[[Path], None]) -> bool:
    """Remove a state after calling `on_removal` with its folder; returns False if a process holds it.

    Raises:
        OSError: of `on_removal`, or of the disk; the state is still there.
    """
    with StateLock(state.directory) as lock:
        if lock.acquire():
            on_removal(state.directory)
            # renamed first: a kill in between leaves nothing that passes for a state
            grave = state.directory.with_name(f".{state.directory.name}")
            shutil.rmtree(grave, ignore_errors=True)
            state.directory.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)
            return True
    return False


def _entries(directory: Path) -> list[Path]:
    """The entries of a folder, none if it does not exist. Unlike `glob`, raises if the folder cannot be read."""
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_possible(state: SavedState, on_removal: Callable[[Path], None]) -> None:
    with suppress(OSError):
        remove(state, on_removal)


def _last_used(state: SavedState) -> float:
    return state.last_used


def _other_workspace(state: SavedState, workspace: Workspace) -> Path | None:
    """The workspace that ran the state last, if it is another one: a folder of DVC's for one experiment."""
    owner = state.holder.workspace
    return None if owner in (None, workspace.name) else workspace.root / owner


def _is_for_others(state: SavedState, workspace: Workspace) -> bool:
    """Whether another workspace may yet go on with the state."""
    other = _other_workspace(state, workspace)
    is_recent = time.time() - state.last_used < _REQUEUE_SECONDS
    return other is not None and (other.exists() or (is_recent and not state.is_complete))


def _is_done_elsewhere(state: SavedState, workspace: Workspace) -> bool:
    """Whether the state is that of an experiment whose folder DVC has removed, with its result recorded."""
    return state.is_complete and _other_workspace(state, workspace) is not None
