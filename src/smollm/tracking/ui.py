"""Shows MLflow's pages of this repository: ``python3 -m smollm.tracking.ui`` (`make ui`); options are `mlflow ui`'s."""

import os
import sys
from pathlib import Path

from smollm.state.workspace import Workspace
from smollm.tracking.mlflow_store import MlflowStore


def main() -> None:
    store = MlflowStore.of(Workspace.find(Path.cwd()).root)
    if store.is_server:
        raise SystemExit(f"MLFLOW_TRACKING_URI names a server: its pages are at {store.shown}")
    try:
        store.prepare()
    except Exception as error:  # whatever the way to the store raises
        raise SystemExit(store.outage(error)) from None
    os.chdir(store.root.parent)  # where `shown` leads from
    # eight processes for jobs of MLflow's "GenAI" pages, which no run of a stage has
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    arguments = ["ui", "--host", "127.0.0.1", "--backend-store-uri", store.shown, *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


if __name__ == "__main__":
    main()
