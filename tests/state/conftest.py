"""A small workspace, and no waiting for what never comes."""

from pathlib import Path

import pytest
from support.live_states import write_workspace

from smollm.state import live_state
from smollm.state.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return write_workspace(tmp_path)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An orphan is not waited for as long as in earnest."""
    monkeypatch.setattr(live_state, "_DYING_SECONDS", 0.2)
