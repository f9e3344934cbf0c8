"""Remove the live states that nobody will go on with: ``python -m smollm.tidy``, at the end of `make repro`.

A stage removes those of its own edits when it starts; those of an edit that was taken back, whose
result DVC restores without starting anything, are left to this.
"""

import time
from pathlib import Path

from smollm.live_state import Workspace, drop_abandoned, drop_recorded
from smollm.progress import say
from smollm.tracking.outbox import abandon
from smollm.tracking.store import Store


def main() -> None:
    workspace = Workspace.find(Path.cwd())
    store = Store.of(workspace.root)
    drop_recorded(workspace)
    drop_abandoned(workspace, say, lambda directory: abandon(directory, store, time.time()))


if __name__ == "__main__":
    main()
