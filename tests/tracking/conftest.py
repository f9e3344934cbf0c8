"""A real MLflow store, and a stage's live state to send to it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.clone import empty_store
from support.deliveries import DESCRIPTION, record_steps

from smollm.state.files import write_json
from smollm.tracking.mlflow_store import MlflowStore

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture
def store(tmp_path: Path) -> MlflowStore:
    root = tmp_path / "mlruns"
    root.mkdir()
    shutil.copyfile(empty_store(), root / "mlflow.db")
    return MlflowStore(f"sqlite:///{root}/mlflow.db", root)


@pytest.fixture
def client(store: MlflowStore) -> "MlflowClient":
    return store.client()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A stage's live state, with something in its journal."""
    directory = tmp_path / "state"
    directory.mkdir()
    write_json(directory / "description.json", {**vars(DESCRIPTION), "datasets": [vars(DESCRIPTION.datasets[0])]})
    record_steps(directory, 1, 4)
    return directory
