"""Remove live states that nothing will resume: ``python -m smollm.operate.tidy``, the last step of `make repro`.

Stages remove such states themselves, but DVC restores known results without starting a stage. So run this when
`dvc repro` has brought everything up to date: of the states that an edit abandoned, the newest of each stage stay, and
are named; the others are removed. With names of states (`make drop STATE=pretrain/...`) only those are removed.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from smollm.errors import StateError
from smollm.stage.run import main
from smollm.state.saved_state import SavedState, abandoned_states, remove, remove_unneeded, saved_states
from smollm.state.workspace import Workspace
from smollm.tracking.console import say
from smollm.tracking.kept_states import format_bytes, kept_state_line
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.outbox import abandon, send_waiting, waiting


def tidy(names: list[str]) -> None:
    """Remove the states with these names; without names, those that nothing will resume."""
    workspace = Workspace.find(Path.cwd())
    store = MlflowStore.of(workspace.root)
    closed: list[Path] = []

    def close(directory: Path) -> None:
        abandon(directory, store, time.time())
        closed.append(directory)

    if names:
        for name in names:
            _drop(_named(name, workspace), close)
    else:
        remove_unneeded(workspace, say, close)
        for stage in sorted({state.stage for state in saved_states(workspace)}):
            for state in abandoned_states(workspace, stage, None):
                say(kept_state_line(state, workspace.recorded_inputs(stage), workspace.recorded_params(stage) or {}))
        for failure in workspace.directory.glob("reports/*/failure.json"):
            failure.unlink()
    if closed and waiting(store):
        send_waiting(store)


def _drop(state: SavedState, on_removal: Callable[[Path], None]) -> None:
    size = state.bytes
    if not remove(state, on_removal):
        holder = state.holder
        raise StateError(f"{state.name}: in use by {holder}; stop it with `kill {holder.pid}`")
    say(f"removed .resume/{state.name} ({format_bytes(size)})")


def _named(name: str, workspace: Workspace) -> SavedState:
    states = {state.name: state for state in saved_states(workspace)}
    if name not in states:
        known = ", ".join(states) or "none"
        raise StateError(f"STATE must name a folder of .resume/, got {name!r}; there are: {known}")
    return states[name]


if __name__ == "__main__":
    main(lambda: tidy(sys.argv[1:]))
