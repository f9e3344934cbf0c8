"""The live state of a stage: everything it writes while it runs, in ``.resume/<stage>/<fingerprint>/``.

DVC deletes a stage's outputs before it starts it, so what must survive a kill lives here, unknown
to DVC. The fingerprint covers the stage's command, its dependencies and its parameters as dvc.yaml
names them: a stage that is started with the same three goes on where it was, any other one starts
afresh, and the state of abandoned ones is removed, as is that of a stage which DVC has recorded.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from smollm.errors import StateError
from smollm.state.journal import COMPLETE, Journal
from smollm.state.workspace import Workspace

LEADER = "SMOLLM_LEADER"
"""Names, where several processes do the work of one, the process that started them and ends them all."""

_DYING_SECONDS = 30.0
"""A killed process holds its lock until the disk has taken what it was writing."""

_PATIENCE_SECONDS = 7 * 24 * 3600.0
"""DVC removes the folder of a queued experiment that was killed; it may be queued again, and then goes on."""


def drop_recorded(workspace: Workspace, on_removal: Callable[[Path], None]) -> None:
    """Remove the states of stages that are done and recorded by DVC: nobody goes on with those.

    Args:
        workspace: whose dvc.lock tells.
        on_removal: called with the folder of each before it is removed; an OSError keeps it.
    """
    for stage, directory in workspace.states():
        if _is_complete(directory) and workspace.is_recorded(stage, directory.name):
            _remove(directory, workspace, on_removal)
    for grave in (workspace.root / ".resume").glob("*/.*"):  # of a process that was killed while it removed a state
        shutil.rmtree(grave, ignore_errors=True)


def drop_all(workspace: Workspace, say: Callable[[str], None], on_removal: Callable[[Path], None]) -> None:
    """Remove every state that no process holds, once `dvc repro` has brought all stages up to date.

    Args:
        workspace: where it has.
        say: prints a line for the user.
        on_removal: as for `drop_recorded`.
    """
    drop_recorded(workspace, on_removal)
    for stage, directory in workspace.states():
        _remove(directory, workspace, _announced(stage, say, on_removal))


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
            on_removal: called with the folder of each state that nobody goes on with before it is removed; an
                OSError keeps it.

        Raises:
            StateError: another process of this workspace runs the stage.
        """
        self.stage, self.workspace, self._say = stage, workspace, say
        self.inputs = workspace.inputs(stage)
        self.fingerprint = workspace.fingerprint(stage, self.inputs)
        self.directory = workspace.root / ".resume" / stage / self.fingerprint
        self._on_removal = on_removal

    def __enter__(self) -> "LiveState":
        self._visit_others()
        self._lock = self._acquire()
        if self.is_complete and self.workspace.is_recorded(self.stage, self.fingerprint):
            self._say(f"{self.stage}: forced to run again; starting from its beginning")
            # `complete` goes last: a kill in between leaves what is forced again
            for path in sorted(self.directory.iterdir(), key=lambda path: path.name == "complete"):
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        drop_recorded(self.workspace, self._on_removal)
        self.journal = Journal(self.directory / "journal.jsonl")
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()
        self._lock.close()

    @property
    def is_complete(self) -> bool:
        return _is_complete(self.directory)

    def mark_complete(self) -> None:
        self.journal.append(COMPLETE, 0)
        self.journal.sync()
        (self.directory / "complete").touch()

    def mark_incomplete(self) -> None:
        """Have the work gone on with: what was done is damaged."""
        (self.directory / "complete").unlink(missing_ok=True)

    def check_unchanged(self) -> None:
        """
        Raises:
            StateError: code, inputs or params are no longer those that the stage started with. DVC
                would record the new ones with the result of the old ones.
        """
        now = replace(self.workspace, values=None)
        if now.fingerprint(self.stage, now.inputs(self.stage)) != self.fingerprint:
            raise StateError(
                f"{self.stage}: its params, code and inputs must stay as they are while it runs, got others since its "
                "start; put them back and run `dvc repro` to have its result, or run `dvc repro` for the new ones"
            )

    def _acquire(self) -> IO[str]:
        said = False
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                file = (self.directory / "lock").open("a+")
            except FileNotFoundError:  # another process has just removed the state
                continue
            holder = _lock(file, self.workspace)
            if holder is None:
                if _is_file_at(file, self.directory / "lock"):
                    file.seek(0)
                    file.truncate()
                    pid = int(os.environ.get(LEADER, os.getpid()))
                    json.dump({"pid": pid, "workspace": str(self.workspace.directory)}, file)
                    file.flush()
                    return file
            elif holder.get("workspace") == str(self.workspace.directory):
                self._refuse(holder)
            elif not said:
                self._say(f"{self.stage}: waiting for process {holder.get('pid')}, which computes the same elsewhere")
                said = True
            file.close()
            time.sleep(0.2)

    def _visit_others(self) -> None:
        """Refuse to run beside a process of this workspace; remove states that nobody will continue."""
        for stage, directory in self.workspace.states():
            if stage == self.stage and directory != self.directory:
                holder = _remove(directory, self.workspace, _announced(stage, self._say, self._on_removal))
                if holder and holder.get("workspace") == str(self.workspace.directory):
                    self._refuse(holder)

    def _refuse(self, holder: dict[str, Any]) -> None:
        pid = holder.get("pid")
        raise StateError(
            f"{self.stage}: must be the only one running in this workspace, got process {pid} still at it; "
            f"let it finish, or stop it with `kill {pid}`, then run `dvc repro` again"
        )


def _is_complete(directory: Path) -> bool:
    return (directory / "complete").exists()


def _announced(stage: str, say: Callable[[str], None], on_removal: Callable[[Path], None]) -> Callable[[Path], None]:
    def announce(directory: Path) -> None:
        say(f"{stage}: removing the state of a run with other inputs ({directory.name})")
        on_removal(directory)

    return announce


def _remove(directory: Path, workspace: Workspace, on_removal: Callable[[Path], None]) -> dict[str, Any] | None:
    """Remove a state, unless a process holds it, which is returned, or others may want it."""
    try:
        file = (directory / "lock").open("a+")
    except FileNotFoundError:  # another process has just removed it
        return None
    with file:
        holder = _lock(file, workspace)
        if holder is None and not _is_for_others(directory, file, workspace):
            with suppress(OSError):
                on_removal(directory)
                # renamed first: a kill in between leaves nothing that passes for a state
                grave = directory.with_name(f".{directory.name}")
                shutil.rmtree(grave, ignore_errors=True)
                directory.rename(grave)
                shutil.rmtree(grave, ignore_errors=True)
        return holder


def _is_for_others(directory: Path, file: IO[str], workspace: Workspace) -> bool:
    """Whether the state's last process ran in another workspace, where one may yet go on with it."""
    owner = Path(_read_holder(file).get("workspace", workspace.directory))
    if owner == workspace.directory:
        return False
    is_recent = time.time() - directory.stat().st_mtime < _PATIENCE_SECONDS
    return owner.exists() or (is_recent and not _is_complete(directory))


def _lock(file: IO[str], workspace: Workspace) -> dict[str, Any] | None:
    """Lock `file` and return None, or return what its holder wrote there.

    A holder of the same `workspace` may be one that was killed, and is given the time to end.
    """
    deadline = time.monotonic() + _DYING_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(file)
        else:
            return None
        # a holder that has not signed yet will in a moment
        if holder.get("workspace") not in (None, str(workspace.directory)) or time.monotonic() > deadline:
            return holder
        time.sleep(0.1)


def _read_holder(file: IO[str]) -> dict[str, Any]:
    """What the last holder of the lock wrote there; nothing where it was killed before."""
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
    except ValueError:
        return {}
    return holder


def _is_file_at(file: IO[str], path: Path) -> bool:
    """Whether `path` still names the open `file`, which another process may have removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
