"""An error at any call of the file system: one line or none, no endless wait, and nothing that was trained is lost."""

import errno
import itertools
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.failing_disk import ERRORS, FailingDisk, failing
from support.live_states import edit, nothing, record, state, train, write_workspace

from smollm.errors import user_error
from smollm.state.files import link_or_copy, replace_directory, write_json
from smollm.state.journal import Kind
from smollm.state.live_state import LiveState
from smollm.state.saved_state import SavedState
from smollm.state.tokens import open_tokens, read_manifest
from smollm.state.workspace import Workspace


@pytest.fixture(scope="module")
def scene() -> Iterator[Path]:
    """A workspace with a stage that was killed, a version of it that an edit abandoned, and a finished stage."""
    in_memory = Path("/dev/shm")  # where there is one: a real disk takes minutes
    with TemporaryDirectory(dir=in_memory if os.access(in_memory, os.W_OK) else None) as directory:
        yield write_scene(Path(directory) / "scene")


def write_scene(directory: Path) -> Path:
    workspace = write_workspace(directory)
    (workspace.directory / "data" / "deep" / "a.bin").write_bytes(b"\1\0")
    write_json(workspace.directory / "data" / "manifest.json", {"dtype": "uint16"})
    edit(workspace, 2)
    train(workspace, step=200)
    edit(workspace, 1)
    live = train(workspace, step=100)
    (live.directory / "journal.jsonl").open("ab").write(b'{"torn')
    with LiveState("later", workspace, nothing, nothing) as later:
        later.mark_complete()
    return workspace.directory


def work(workspace: Workspace, directory: Path) -> None:
    """All that stages do with the state package, from the start of one to the start of the next."""
    with state(workspace) as live:
        live.journal.append(Kind.STEP, 101, train_loss=2.0)
        live.journal.sync()
        live.journal.records()
        live.abandoned()
        read_manifest(directory / "data")
        open_tokens(directory / "data" / "deep" / "a.bin", "uint16")
        write_json(live.directory / "model" / "config.json", {"size": 1})
        live.mark_complete()
        live.check_unchanged()
        replace_directory(live.directory / "model", directory / "model")
        link_or_copy(live.directory / "model" / "config.json", directory / "copy.json")
    record(workspace, live)
    with LiveState("later", workspace, nothing, nothing) as later:
        later.mark_incomplete()


def assert_nothing_is_lost(workspace: Workspace, abandoned: Path, killed: Path) -> None:
    """What an edit abandoned is there, and the killed stage goes on or has been recorded."""
    assert list(abandoned.glob("checkpoints/step-00000200/model"))
    assert SavedState("train", abandoned).step == 200
    if killed.exists() and not workspace.is_recorded("train", killed.name):
        assert list(killed.glob("checkpoints/step-00000100/model"))
        with state(workspace) as live:
            assert live.directory == killed
            assert [record.step for record in live.journal.records() if record.kind == Kind.STEP][:1] == [100]
    else:
        assert workspace.is_recorded("train", killed.name)


def copied(scene: Path, directory: Path) -> Workspace:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(scene, directory)
    return Workspace(directory, directory)


def faults_of(operation: str, sites: list[tuple[str, ...]], every: bool) -> list[tuple[tuple[str, ...], int]]:
    """Calls that are to fail, each with its error: all errors at each call, or two or more that take turns."""
    codes = ERRORS[operation]
    count = len(codes) if every else max(2, math.ceil(len(codes) / len(sites)))
    turns = itertools.cycle(codes)
    return [(site, next(turns)) for site in sites for _ in range(count)]


@pytest.mark.parametrize(
    ("every", "lasts"),
    [
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
    ids=["some", "all", "all from then on"],
)
@pytest.mark.parametrize("operation", ERRORS)
def test_a_fault_at_any_call_costs_nothing(operation: str, every: bool, lasts: bool, scene: Path) -> None:
    abandoned, killed = (
        next(scene.glob(f".resume/train/*/checkpoints/step-00000{step}")).parents[1].relative_to(scene)
        for step in (200, 100)
    )
    directory = scene.with_name("project")
    disk = FailingDisk(directory, operation)
    workspace = copied(scene, directory)
    with failing(disk):
        work(workspace, directory)
    assert disk.sites, "the operation is in use"
    for site, code in faults_of(operation, disk.sites, every):
        copied(scene, directory)
        faulty = FailingDisk(directory, operation, code, site, lasts)
        where = f"{errno.errorcode[code]} of {operation} at {' < '.join(site)}"
        try:
            with failing(faulty):
                work(workspace, directory)
        except Exception as error:
            line = user_error(error)
            assert line is not None, f"{where}: {error!r}"
            assert "\n" not in str(line), where
        assert faulty.failures, where
        try:
            assert_nothing_is_lost(workspace, directory / abandoned, directory / killed)
        except BaseException as error:
            raise AssertionError(where) from error
