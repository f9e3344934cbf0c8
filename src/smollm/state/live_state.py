"""The live state of a stage: the folder ``.resume/<stage>/<fingerprint>/``, with all that a running stage writes.

DVC deletes a stage's outputs before it starts the stage, so everything that must survive a kill is here, where DVC does
not look. The fingerprint is a hash of the command, dependencies and params that dvc.yaml names for the stage. A stage
that is started with the same three resumes from its folder; with others, it starts from its beginning in a new folder.

The lock (`state_lock`) keeps a second process out of the folder; `saved_state` decides how long the folder is kept.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from smollm.errors import StateError
from smollm.state.files import sync_directory, write_json
from smollm.state.journal import Journal, Kind
from smollm.state.saved_state import FINGERPRINTED, SavedState, abandoned_states, remove_unneeded, saved_states
from smollm.state.state_lock import LOCK_FILES, Holder, StateLock
from smollm.state.workspace import Workspace

_DYING_SECONDS = 30.0
"""How long a killed process may keep its lock, because the disk is still writing for it."""

_SILENT_SECONDS = 3600.0
"""How long to wait for a process of another workspace that no longer writes to the state."""

_UNSEEN_SECONDS = 60.0
"""On a file system without locks: after this long without a change, another machine's claim is ignored."""

_REMINDER_SECONDS = 600.0
"""Time between two reminders that a stage is still waiting."""


class LiveState:
    """The live state of one stage, locked for this process; a context manager.

    Attributes:
        directory: the folder of the state.
        fingerprint: hash of the stage's command, inputs and params.
        inputs: digest of each dependency, by path.
        is_complete: whether all steps are done, so that at most publishing the outputs is left.
        journal: what has happened so far.
    """

    def __init__(
        self,
        stage: str,
        workspace: Workspace,
        say: Callable[[str], None],
        on_removal: Callable[[Path], None],
    ) -> None:
        """
        Args:
            stage: name in dvc.yaml.
            workspace: where the stage runs.
            say: prints a line for the user.
            on_removal: called with the folder of a state that nobody will resume, before it is removed; the state
                stays if this raises an OSError.
        """
        self.stage, self.workspace, self._say = stage, workspace, say
        self.inputs = workspace.inputs(stage)
        self.fingerprint = workspace.fingerprint(stage, self.inputs)
        self.directory = workspace.root / ".resume" / stage / self.fingerprint
        self._saved = SavedState(stage, self.directory)
        self._on_removal = on_removal

    def __enter__(self) -> "LiveState":
        """Lock the state, and open its journal.

        Raises:
            StateError: another process of this workspace runs the stage, or one elsewhere computes the same and hangs.
        """
        self._refuse_a_second_process()
        with ExitStack() as stack:
            lock = stack.enter_context(self._lock())
            self._say_what_is_unprotected(lock)
            if self.is_complete and self.workspace.is_recorded(self.stage, self.fingerprint):
                self._say(f"{self.stage}: forced to run again; starting over")
                self._clear()
            remove_unneeded(self.workspace, self._say, self._on_removal, self.directory)
            self._write_fingerprinted()
            self.journal = Journal(self.directory / "journal.jsonl")
            stack.callback(self.journal.close)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def is_complete(self) -> bool:
        return self._saved.is_complete

    def mark_complete(self) -> None:
        """Record that all steps are done."""
        self.journal.append(Kind.COMPLETE, 0)
        self.journal.sync()
        (self.directory / "complete").touch()

    def mark_incomplete(self) -> None:
        """Make the next start continue from the last checkpoint, because the result is damaged."""
        (self.directory / "complete").unlink(missing_ok=True)

    def abandoned(self) -> list[SavedState]:
        """The stage's states from before edits, the newest first; it resumes from one when the edit is undone."""
        return abandoned_states(self.workspace, self.stage, self.directory)

    def check_unchanged(self) -> None:
        """Check that code, inputs and params are those with which the stage started.

        Raises:
            StateError: they are not. DVC would record the new ones beside the result of the old ones.
        """
        now = replace(self.workspace, values=None)
        if now.fingerprint(self.stage, now.inputs(self.stage)) != self.fingerprint:
            raise StateError(
                f"{self.stage}: its params, code or inputs changed while it ran; undo that and `dvc repro` publishes "
                "its result, or run `dvc repro` to start over with the new ones"
            )

    def _refuse_a_second_process(self) -> None:
        """Refuse to run while another process of this workspace runs the stage, such as an orphan of a killed DVC."""
        deadline = time.monotonic() + _DYING_SECONDS
        while (holder := self._process_of_this_workspace()) is not None:
            if time.monotonic() > deadline:
                self._refuse(holder)
            time.sleep(0.1)

    def _process_of_this_workspace(self) -> Holder | None:
        for state in saved_states(self.workspace):
            if state.stage == self.stage and state.holder.workspace == self.workspace.name:
                with StateLock(state.directory) as lock:
                    if not lock.acquire() and not lock.is_elsewhere:
                        return lock.holder
        return None

    def _lock(self) -> StateLock:
        """Lock the state and sign the lock, after waiting for any process of another workspace that holds it.

        Raises:
            StateError: that process has written nothing to the state for an hour.
        """
        last_change, quiet_since, reminder, pause = -1.0, 0.0, 0.0, 0.1
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            now = time.monotonic()
            if (change := self._saved.last_used) != last_change:
                last_change, quiet_since = change, now
            with ExitStack() as stack:
                lock = stack.enter_context(StateLock(self.directory))
                if lock.acquire(takes_over=now - quiet_since > _UNSEEN_SECONDS):
                    lock.sign(self.workspace.name)
                    stack.pop_all()
                    return lock
                holder = lock.holder
            if now - quiet_since > _SILENT_SECONDS:
                raise StateError(
                    f"{self.stage}: {holder}, which runs the same stage in another workspace, has written nothing to "
                    f"{self.directory} for {_SILENT_SECONDS / 60:.0f} minutes; stop it with `kill {holder.pid}`, then "
                    "run `dvc repro` again"
                )
            if now >= reminder and holder.workspace is not None:
                progress = f" (at step {self._saved.step})" if reminder else ""
                self._say(
                    f"{self.stage}: waiting for {holder}, which runs the same stage in another workspace{progress}"
                )
                reminder = now + _REMINDER_SECONDS
            time.sleep(pause)
            pause = min(5.0, 1.5 * pause)

    def _say_what_is_unprotected(self, lock: StateLock) -> None:
        """Say what the file system cannot do to protect the state; the stage runs all the same."""
        lacks = []
        if lock.unsupported:
            lacks.append(f"file locks ({lock.unsupported.strerror}): do not run it on two machines at once")
        if not sync_directory(self.directory):
            lacks.append("fsync of folders: a power cut may cost the newest checkpoints")
        for lack in lacks:
            self._say(f"{self.stage}: the file system of {self.directory.parent.parent} has no {lack}")

    def _clear(self) -> None:
        """Remove all but the lock. `complete` goes last: if this is killed midway, the next start clears the rest."""
        for path in sorted(self.directory.iterdir(), key=lambda path: path.name == "complete"):
            if path.name not in LOCK_FILES:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _write_fingerprinted(self) -> None:
        command = self.workspace.stage(self.stage)["cmd"]
        params = self.workspace.params(self.stage)
        write_json(self.directory / FINGERPRINTED, {"command": command, "inputs": self.inputs, "params": params})

    def _refuse(self, holder: Holder) -> NoReturn:
        raise StateError(
            f"{self.stage}: already running in this workspace as {holder}; let it finish, or stop it with "
            f"`kill {holder.pid}`, then run `dvc repro` again"
        )
