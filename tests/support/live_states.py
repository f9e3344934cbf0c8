"""A workspace of two small stages, and processes that hold the live state of one."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from support.structure import ROOT

from smollm.state.journal import Kind
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace

DVC_YAML = {
    "stages": {
        "train": {"cmd": "python3 -m train", "deps": ["code.py", "data"], "params": ["seed", "eps"], "outs": ["model"]},
        "later": {"cmd": "python3 -m later", "deps": ["data"], "params": ["seed"], "outs": ["result"]},
    }
}

HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]), Path(sys.argv[2]))
with LiveState("train", workspace, lambda line: None, print):
    print("holding", flush=True)
    sys.stdin.read()
"""


def nothing(_: object) -> None:
    """Take no notice."""


def write_workspace(directory: Path, root: Path | None = None, code: str = "x = 1\n") -> Workspace:
    """A workspace at `directory`, of the repository at `root`."""
    files = {
        "dvc.yaml": yaml.safe_dump(DVC_YAML),
        "params.yaml": "seed: 1\neps: 1.0e-5\nother: 2\n",
        "code.py": code,
        "data/deep/a.txt": "a",
    }
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return Workspace(directory, root or directory)


def edit(workspace: Workspace, number: int) -> None:
    """Make the stage `train` one of another fingerprint; the first edit is number 2."""
    (workspace.directory / "code.py").write_text(f"x = {number}\n")


def state(
    workspace: Workspace, say: Callable[[str], Any] = nothing, on_removal: Callable[[Path], Any] = nothing
) -> LiveState:
    """The live state of the stage `train`."""
    return LiveState("train", workspace, say, on_removal)


def train(workspace: Workspace, step: int = 100, size: int = 10) -> LiveState:
    """Run the stage until a checkpoint of that many bytes is saved, and no further."""
    with state(workspace) as live:
        live.journal.append(Kind.STEP, step, train_loss=2.0)
        checkpoint = live.directory / "checkpoints" / f"step-{step:08d}" / "model"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"\0" * size)
    return live


def finish(workspace: Workspace) -> LiveState:
    """Run the stage to its end, and have DVC record it."""
    with state(workspace) as live:
        live.mark_complete()
    record(workspace, live)
    return live


def record(workspace: Workspace, live: LiveState) -> None:
    """Write the dvc.lock that DVC writes when the stage `train` has ended well."""
    entry = {
        "cmd": "python3 -m train",
        "deps": [{"path": path, "hash": "md5", "md5": digest, "size": 1} for path, digest in live.inputs.items()],
        "params": {"params.yaml": {"seed": 1, "eps": 1e-5}},
        "outs": [{"path": "model", "md5": "0" * 32}],
    }
    text = yaml.safe_dump({"schema": "2.0", "stages": {"train": entry}})
    (workspace.directory / "dvc.lock").write_text(text.replace("1.0e-05", "1e-05"))  # as DVC writes it


@contextmanager
def holder(workspace: Workspace, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the state of `train` until its input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, workspace.directory, workspace.root, ROOT / "src"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=variables or None,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()
