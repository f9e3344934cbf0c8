"""Which live states stay on the disk, and which are removed.

An edit changes a stage's fingerprint. The stage then starts from its beginning in a new state, and its old state is
abandoned, but kept: when the edit is undone, the stage resumes from it. All abandoned states of a stage are kept until
the stage has finished; then only the newest two.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from smollm.state import journal
from smollm.state.files import file_stats, read_json
from smollm.state.state_lock import Holder, StateLock
from smollm.state.workspace import Workspace

FINGERPRINTED = "fingerprinted.json"
"""File of a state: the stage's command, inputs and params, of which its fingerprint is the hash."""

_WORK = ("checkpoints", "data")
"""Folders that a stage resumes from: checkpoints of training stages, encoded text of `tokenize`."""

KEPT = 2
"""Abandoned states of a stage, the newest, that are kept once it has finished."""

_REQUEUE_SECONDS = 7 * 24 * 3600.0
"""How long the state of a killed queued experiment is kept; queued again, the experiment resumes from it."""


@dataclass(frozen=True)
class SavedState:
    """A live state on the disk, whether or not a process is using it."""

    stage: str
    directory: Path
    """``.resume/<stage>/<fingerprint>``."""

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.directory.name}"

    @property
    def is_complete(self) -> bool:
        """Whether all steps are done, so that at most publishing the outputs is left."""
        return (self.directory / "complete").exists()

    @property
    def holds_work(self) -> bool:
        """Whether there is anything to resume from. A journal alone does not count."""
        work = (path for folder in _WORK for path in _entries(self.directory / folder))
        return self.is_complete or any(not path.name.startswith(".") for path in work)

    @property
    def last_used(self) -> float:
        """When one of its files was last written, in seconds since the epoch; 0 if it has no file."""
        return max((entry.st_mtime for entry in file_stats(self.directory)), default=0.0)

    @property
    def step(self) -> int:
        """The last step in its journal; 0 before the first."""
        records = journal.read(self.directory / "journal.jsonl")
        return max((record.step for record, _ in records if record.kind == journal.Kind.STEP), default=0)

    @property
    def fingerprinted(self) -> dict[str, Any]:
        """The command, inputs and params of which the fingerprint is the hash; empty if they were not written."""
        return read_json(self.directory / FINGERPRINTED)

    @property
    def holder(self) -> Holder:
        """The process that uses the state, or used it last."""
        return Holder.read(self.directory / "lock")

    @property
    def bytes(self) -> int:
        return sum(entry.st_size for entry in file_stats(self.directory))


def saved_states(workspace: Workspace) -> Iterator[SavedState]:
    """The states of all stages in the repository."""
    for stage in _entries(workspace.root / ".resume"):
        for directory in _entries(stage):
            if not directory.name.startswith("."):
                yield SavedState(stage.name, directory)


def abandoned_states(workspace: Workspace, stage: str, current: Path | None) -> list[SavedState]:
    """The states of a stage that this workspace could resume after an edit is undone, the newest first.

    Args:
        workspace: where the stage runs.
        stage: name in dvc.yaml.
        current: the state that the stage is using, which is not abandoned.
    """
    others = (state for state in saved_states(workspace) if state.stage == stage and state.directory != current)
    own = (state for state in others if state.holds_work and not _is_for_others(state, workspace))
    return sorted(own, key=attrgetter("last_used"), reverse=True)


def remove_unneeded(
    workspace: Workspace,
    say: Callable[[str], None],
    on_removal: Callable[[Path], None],
    current: Path | None = None,
) -> None:
    """Remove the states that nobody will resume, unless a process is using them.

    These are:
    - every state whose result DVC has recorded in dvc.lock;
    - of a stage that has finished, all abandoned states but the newest `KEPT` with something to resume from;
    - of the stage that is starting, abandoned states with nothing to resume from.

    Args:
        workspace: whose dvc.lock is read.
        say: prints a line for the user.
        on_removal: called with a state's folder before it is removed; the state stays if this raises an OSError.
        current: the state of the stage that is starting; None if no stage is, because all are up to date.
    """

    def announced(directory: Path) -> None:
        say(f"{directory.parent.name}: removing the state of a run with different inputs ({directory.name})")
        on_removal(directory)

    starting = None if current is None else current.parent.name
    others = [state for state in saved_states(workspace) if state.directory != current]
    own = [state for state in others if not _is_for_others(state, workspace)]
    for stage in sorted({state.stage for state in own}):
        of_stage = sorted((state for state in own if state.stage == stage), key=attrgetter("last_used"), reverse=True)
        recorded = [s for s in of_stage if s.is_complete and workspace.is_recorded(stage, s.directory.name)]
        kept = abandoned = [state for state in of_stage if state not in recorded]
        has_finished = starting is None or bool(recorded)
        if has_finished or stage == starting:
            kept = [state for state in abandoned if state.holds_work and not _is_done_elsewhere(state, workspace)]
        if has_finished:
            kept = kept[:KEPT]
        for state in abandoned:
            if state not in kept:
                _remove_if_possible(state, announced)
        for state in recorded:
            _remove_if_possible(state, on_removal)
    for half_removed in (workspace.root / ".resume").glob("*/.*"):  # by a process that was killed meanwhile
        shutil.rmtree(half_removed, ignore_errors=True)


def remove(state: SavedState, on_removal: Callable[[Path], None]) -> bool:
    """Call `on_removal` with a state's folder, then remove the folder; returns False if a process is using it.

    Raises:
        OSError: from `on_removal` or the disk; the state is still there.
    """
    with StateLock(state.directory) as lock:
        if lock.acquire():
            on_removal(state.directory)
            # renamed first, so that a kill meanwhile leaves nothing that looks like a state
            removed = state.directory.with_name(f".{state.directory.name}")
            shutil.rmtree(removed, ignore_errors=True)
            state.directory.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)
            return True
    return False


def _entries(directory: Path) -> list[Path]:
    """The entries of a folder; none if it does not exist. Unlike `glob`, raises if the folder cannot be read."""
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_possible(state: SavedState, on_removal: Callable[[Path], None]) -> None:
    with suppress(OSError):
        remove(state, on_removal)


def _other_workspace(state: SavedState, workspace: Workspace) -> Path | None:
    """The workspace that used the state last, if it is another one: DVC's temporary folder of an experiment."""
    owner = state.holder.workspace
    return None if owner in (None, workspace.name) else workspace.root / owner


def _is_for_others(state: SavedState, workspace: Workspace) -> bool:
    """Whether another workspace may still resume the state."""
    other = _other_workspace(state, workspace)
    is_recent = time.time() - state.last_used < _REQUEUE_SECONDS
    return other is not None and (other.exists() or (is_recent and not state.is_complete))


def _is_done_elsewhere(state: SavedState, workspace: Workspace) -> bool:
    """Whether another workspace has finished the state: DVC has recorded that experiment and removed its folder."""
    return state.is_complete and _other_workspace(state, workspace) is not None
