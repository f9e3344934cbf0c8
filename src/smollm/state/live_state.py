"""The live state of a stage: everything it writes while it runs, in ``.resume/<stage>/<fingerprint>/``.

DVC deletes a stage's outputs before it starts it, so what must survive a kill lives here, unknown to DVC. The
fingerprint covers the stage's command, its dependencies and its parameters as dvc.yaml names them: a stage started with
the same three resumes, and any other starts from its beginning in a folder of its own. Three things protect a state:
its lock (`lock`) keeps a second process out, its fingerprint keeps it from being used for other inputs, and `saved`
keeps it from being removed while it is worth going back to.
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
from smollm.state.journal import COMPLETE, Journal
from smollm.state.lock import LOCK_FILES, Holder, StateLock
from smollm.state.saved import VERSION, SavedState, abandoned_states, remove_unneeded, saved_states
from smollm.state.workspace import Workspace

_DYING_SECONDS = 30.0
"""How long a killed process may hold its lock: until the disk has taken what it was writing."""

_SILENT_SECONDS, _UNSEEN_SECONDS = 3600.0, 60.0
"""How long to wait for a process of another workspace that writes nothing to the state, and for one of another machine
whose lock cannot be seen."""

_REMINDER_SECONDS = 600.0
"""Time between two lines that say that a stage is still waiting."""


class LiveState:
    """The locked live state of one stage, as a context manager.

    Attributes:
        directory: the state's own folder.
        fingerprint: of the stage's command, inputs and params.
        inputs: digest of each dependency, by path.
        is_complete: whether the work is done and only its outputs may be missing.
        journal: what happened so far.
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
            workspace: where it runs.
            say: prints a line for the user.
            on_removal: called with the folder of each state that nobody will resume before it is removed; an
                OSError keeps the state.
        """
        self.stage, self.workspace, self._say = stage, workspace, say
        self.inputs = workspace.inputs(stage)
        self.fingerprint = workspace.fingerprint(stage, self.inputs)
        self.directory = workspace.root / ".resume" / stage / self.fingerprint
        self._saved = SavedState(stage, self.directory)
        self._on_removal = on_removal

    def __enter__(self) -> "LiveState":
        """
        Raises:
            StateError: another process of this workspace runs the stage, or one elsewhere computes the same and hangs.
        """
        self._refuse_a_second_process()
        with ExitStack() as stack:
            lock = stack.enter_context(self._lock())
            self._say_what_is_unprotected(lock)
            if self.is_complete and self.workspace.is_recorded(self.stage, self.fingerprint):
                self._say(f"{self.stage}: forced to run again; starting from its beginning")
                self._clear()
            remove_unneeded(self.workspace, self._say, self._on_removal, self.directory)
            self._write_version()
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
        self.journal.append(COMPLETE, 0)
        self.journal.sync()
        (self.directory / "complete").touch()

    def mark_incomplete(self) -> None:
        """Have the next start do the work again from its last checkpoint, because the result is damaged."""
        (self.directory / "complete").unlink(missing_ok=True)

    def abandoned(self) -> list[SavedState]:
        """States of the stage from before an edit; when the edit is undone, the stage resumes from them."""
        return abandoned_states(self.workspace, self.stage, self.directory)

    def check_unchanged(self) -> None:
        """
        Raises:
            StateError: code, inputs or params changed since the stage started. DVC would record the new ones with the
                result of the old ones.
        """
        now = replace(self.workspace, values=None)
        if now.fingerprint(self.stage, now.inputs(self.stage)) != self.fingerprint:
            raise StateError(
                f"{self.stage}: its params, code and inputs must stay as they are while it runs, got others since its "
                "start; put them back and run `dvc repro` to have its result, or run `dvc repro` for the new ones"
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
        """Lock the state, once a process of another workspace that computes the same has ended, and sign the lock.

        Raises:
            StateError: that process has written nothing to the state for long.
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
                    f"{self.stage}: {holder}, which computes the same elsewhere, must write to {self.directory}, got "
                    f"nothing for {_SILENT_SECONDS / 60:.0f} minutes; stop it with `kill {holder.pid}`, then run "
                    "`dvc repro` again"
                )
            if now >= reminder and holder.workspace is not None:
                progress = f" (at step {self._saved.step})" if reminder else ""
                self._say(f"{self.stage}: waiting for {holder}, which computes the same elsewhere{progress}")
                reminder = now + _REMINDER_SECONDS
            time.sleep(pause)
            pause = min(5.0, 1.5 * pause)

    def _say_what_is_unprotected(self, lock: StateLock) -> None:
        """Say once what the file system cannot protect from; the stage runs all the same."""
        lacks = []
        if lock.unsupported:
            lacks.append(f"file locks ({lock.unsupported.strerror}): do not run it on two machines at once")
        if not sync_directory(self.directory):
            lacks.append("fsync of folders: a power cut may cost the newest checkpoints")
        for lack in lacks:
            self._say(f"{self.stage}: the file system of {self.directory.parent.parent} has no {lack}")

    def _clear(self) -> None:
        """Remove all but the lock; `complete` goes last: a kill in between leaves what is forced again."""
        for path in sorted(self.directory.iterdir(), key=lambda path: path.name == "complete"):
            if path.name not in LOCK_FILES:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _write_version(self) -> None:
        command = self.workspace.stage(self.stage)["cmd"]
        params = self.workspace.params(self.stage)
        write_json(self.directory / VERSION, {"command": command, "inputs": self.inputs, "params": params})

    def _refuse(self, holder: Holder) -> NoReturn:
        raise StateError(
            f"{self.stage}: must be the only one running in this workspace, got {holder} still at it; "
            f"let it finish, or stop it with `kill {holder.pid}`, then run `dvc repro` again"
        )
