"""The checkpoints of a running stage: which are kept, and that a fault or damage leaves one to go on from."""

import errno
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import DAMAGES, FINGERPRINT, MODEL, OPTIMIZER, STATE, assert_same_checkpoint, make, truncate

from smollm.errors import CheckpointError
from smollm.training import checkpoint as module
from smollm.training.checkpoint import Checkpoint, save
from smollm.training.checkpoint_store import CheckpointStore


def newest_of(store: CheckpointStore) -> Path:
    return max(store.directory.glob("step-*"))


def write(store: CheckpointStore, step: int) -> None:
    store.save(make(step))
    store.wait()


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2, fingerprint=FINGERPRINT)
    for step in (1, 9, 10, 100):
        write(store, step)
    assert sorted(path.name for path in store.directory.iterdir()) == ["step-00000010", "step-00000100"]
    assert newest_of(store).name == "step-00000100"
    assert store.newest_step() == 100
    assert_same_checkpoint(store.newest(pytest.fail), make(100))


def test_an_empty_store_has_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none", keep=2, fingerprint=FINGERPRINT)
    assert store.newest(pytest.fail) is None
    assert store.newest_step() is None


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [STATE, MODEL, OPTIMIZER])
def test_a_damaged_newest_one_falls_back_to_the_one_before_with_a_warning(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    store = CheckpointStore(tmp_path, keep=2, fingerprint=FINGERPRINT)
    write(store, 1)
    write(store, 2)
    damage(newest_of(store) / name)
    warnings: list[str] = []
    assert_same_checkpoint(store.newest(warnings.append), make(1))
    (warning,) = warnings
    assert str(tmp_path / "step-00000002") in warning
    assert "going back to the checkpoint before it" in warning
    assert newest_of(store).name == "step-00000001"


def test_a_store_with_nothing_but_damage_has_no_checkpoint_and_says_so(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, fingerprint=FINGERPRINT)
    for step in (1, 2):
        write(store, step)
        truncate(newest_of(store) / MODEL)
    warnings: list[str] = []
    assert store.newest(warnings.append) is None
    assert [re.search(r"step-\d+", warning).group() for warning in warnings] == ["step-00000002", "step-00000001"]


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, fingerprint=FINGERPRINT)
    write(store, 1)
    half = tmp_path / ".step-00000002.tmp"
    shutil.copytree(tmp_path / "step-00000001", half)
    (half / STATE).unlink()
    assert_same_checkpoint(store.newest(pytest.fail), make(1))
    write(store, 2)
    assert_same_checkpoint(store.newest(pytest.fail), make(2))
    assert not half.exists()


class Faults:
    """Fails the n-th file operation, or that one and all that follow, as a full disk would."""

    OPERATIONS = (
        (os, "fsync"),
        (os, "mkdir"),
        (os, "open"),
        (os, "rename"),
        (os, "replace"),
        (os, "rmdir"),
        (os, "unlink"),
        (Path, "open"),
        (module, "save_file"),
        (module, "file_digest"),
    )

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int, lasting: bool) -> None:
        self.fail_at, self.lasting = fail_at, lasting
        self.seen: list[str] = []
        for owner, name in self.OPERATIONS:
            patch.setattr(owner, name, self._wrap(name, getattr(owner, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.seen.append(name)
            if len(self.seen) == self.fail_at or (self.lasting and len(self.seen) > self.fail_at):
                if name == "save_file":
                    real(*args, **kwargs)
                    truncate(args[1])
                raise OSError(errno.ENOSPC, f"no space left on device: {name}")
            return real(*args, **kwargs)

        return call


def operations_of_a_save(directory: Path, keep: int) -> list[str]:
    store = CheckpointStore(directory, keep, fingerprint=FINGERPRINT)
    for step in range(1, keep + 1):
        write(store, step)
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, fail_at=0, lasting=False)
        write(store, keep + 1)
    return faults.seen


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_fault_at_any_file_operation_of_a_save_leaves_a_checkpoint(tmp_path: Path, keep: int, lasting: bool) -> None:
    operations = operations_of_a_save(tmp_path / "without faults", keep)
    assert {"fsync", "mkdir", "open", "rename", "replace", "unlink", "save_file"} <= set(operations)
    assert operations.count("save_file") == 2
    raised = 0
    for fail_at in range(1, len(operations) + 1):
        store = CheckpointStore(tmp_path / str(fail_at), keep, fingerprint=FINGERPRINT)
        for step in range(1, keep + 1):
            write(store, step)
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, fail_at, lasting)
            try:
                write(store, keep + 1)
            except OSError:
                raised += 1
        found = store.newest(pytest.fail)  # nothing that looks like a checkpoint is damaged
        assert found is not None, operations[fail_at - 1]
        assert found.state.step in (keep, keep + 1)
        assert_same_checkpoint(found, make(found.state.step))
        write(store, keep + 1)
        assert_same_checkpoint(store.newest(pytest.fail), make(keep + 1))
    assert raised > len(operations) / 2


def test_a_disk_that_refuses_to_read_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=2, fingerprint=FINGERPRINT)
    write(store, 1)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(CheckpointError, match="Input/output error"):
            store.newest(pytest.fail)
    found = store.newest(pytest.fail)
    assert found is not None
    assert found.state.step == 1


def test_training_goes_on_while_a_checkpoint_of_the_values_at_its_time_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=2, fingerprint=FINGERPRINT)
    may_write = threading.Event()
    real = module.save_file

    def wait_and_save(*args: Any) -> None:
        assert may_write.wait(30)
        real(*args)

    monkeypatch.setattr(module, "save_file", wait_and_save)
    checkpoint = make(1)
    store.save(checkpoint)
    store.check()
    checkpoint.weights["model.norm.weight"].zero_()
    checkpoint.moments["model.norm.weight.exp_avg"].zero_()
    assert store.newest(pytest.fail) is None
    may_write.set()
    store.wait()
    assert_same_checkpoint(store.newest(pytest.fail), make(1))


def test_a_write_that_failed_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=2, fingerprint=FINGERPRINT)
    write(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        store.save(make(2))
        with pytest.raises(OSError, match="full"):
            while True:
                store.check()
    store.check()  # told once
    assert_same_checkpoint(store.newest(pytest.fail), make(1))
    write(store, 2)
    assert_same_checkpoint(store.newest(pytest.fail), make(2))


def test_a_checkpoint_of_another_run_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, fingerprint=FINGERPRINT)
    write(store, 1)
    other = Checkpoint(replace(make(2).state, fingerprint="f" * 16), make(2).weights, make(2).moments)
    save(tmp_path / "step-00000002", other)
    warnings: list[str] = []
    assert_same_checkpoint(store.newest(warnings.append), make(1))
    (warning,) = warnings
    assert f"must be of the run {FINGERPRINT}, got one of ffffffffffffffff" in warning


def test_the_draft_of_a_killed_process_is_removed_by_the_next_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, fingerprint=FINGERPRINT)
    draft = tmp_path / ".step-00000007.tmp"
    draft.mkdir()
    (draft / MODEL).write_bytes(b"half")
    write(store, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]
