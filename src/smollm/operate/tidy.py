"""Remove what is left of edits that were taken back: ``python -m smollm.operate.tidy``, the last step of `make repro`.

DVC restores the result of values that ran before without starting a stage, so that no stage can. To be
run when `dvc repro` has brought everything up to date: nothing is left to go on with.
"""

import time
from pathlib import Path

from smollm.stage.run import main
from smollm.state.live_state import drop_all
from smollm.state.workspace import Workspace
from smollm.tracking.console import say
from smollm.tracking.outbox import abandon, send_waiting, waiting
from smollm.tracking.store import Store


def tidy() -> None:
    workspace = Workspace.find(Path.cwd())
    store = Store.of(workspace.root)
    abandoned: list[Path] = []

    def close(directory: Path) -> None:
        abandon(directory, store, time.time())
        abandoned.append(directory)

    drop_all(workspace, say, close)
    for failure in workspace.directory.glob("reports/*/failure.json"):
        failure.unlink()
    if abandoned and waiting(store):
        send_waiting(store)


if __name__ == "__main__":
    main(tidy)
