"""Checkpoints: exact, whole or absent, and never believed without a look."""

import ast
import errno
import json
import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smollm.errors import CheckpointError
from smollm.training import checkpoint as module
from smollm.training.checkpoint import Checkpoint, TrainerState, load, save
from smollm.training.checkpoint_store import CheckpointStore

FINGERPRINT = "0123456789abcdef"
STATE, MODEL, OPTIMIZER = "trainer_state.json", "model.safetensors", "optimizer.safetensors"
AVERAGE = "average.safetensors"


def make(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {
        "model.embed_tokens.weight": torch.randn(7, 5, generator=generator),
        "model.norm.weight": torch.tensor([0.1, -0.0, 1e-45, 3.4e38, float("inf")]),
    }
    moments = {
        "model.norm.weight.exp_avg": torch.randn(5, generator=generator),
        "model.norm.weight.step": torch.tensor(float(step)),
    }
    return Checkpoint(TrainerState(step, "pretrain", FINGERPRINT, None, 0), weights, moments)


def newest_of(store: CheckpointStore) -> Path:
    return max(store.directory.glob("step-*"))


def write(store: CheckpointStore, step: int) -> None:
    store.save(make(step))
    store.wait()


def assert_same(ones: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        assert one.dtype == others[name].dtype
        assert one.shape == others[name].shape
        assert one.numpy().tobytes() == others[name].numpy().tobytes(), name


def assert_same_checkpoint(one: Checkpoint | None, other: Checkpoint) -> None:
    assert one is not None
    assert one.state == other.state
    assert_same(one.weights, other.weights)
    assert_same(one.moments, other.moments)
    assert_same(one.average, other.average)


def rewrite_state(directory: Path, **values: Any) -> None:
    state = json.loads((directory / STATE).read_text())
    (directory / STATE).write_text(json.dumps({**state, **values}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "step-00000003", make(3))
    return tmp_path / "step-00000003"


@pytest.mark.parametrize("state", [make(3).state, TrainerState(5050, "finetune", "f" * 16, 65536.0, 17)])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path, state: TrainerState) -> None:
    written = Checkpoint(state, make(3).weights, make(3).moments)
    save(tmp_path / "checkpoint", written)
    assert_same_checkpoint(load(tmp_path / "checkpoint"), written)


def test_an_average_is_a_file_of_its_own_and_what_is_exported(tmp_path: Path) -> None:
    written = replace(make(3), average=make(4).weights)
    save(tmp_path / "checkpoint", written)
    assert_same_checkpoint(load(tmp_path / "checkpoint"), written)
    assert {file.name for file in (tmp_path / "checkpoint").iterdir()} == {STATE, MODEL, OPTIMIZER, AVERAGE}
    assert_same(written.exported, make(4).weights)
    assert_same(make(3).exported, make(3).weights)
    (tmp_path / "checkpoint" / AVERAGE).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"average\.safetensors: must have the sha256 .* damaged"):
        load(tmp_path / "checkpoint")


def test_a_view_that_is_not_contiguous_is_saved_by_its_values(tmp_path: Path) -> None:
    value = torch.arange(12.0).reshape(3, 4).T
    save(tmp_path / "checkpoint", Checkpoint(make(1).state, {"weight": value}, {}))
    assert torch.equal(load(tmp_path / "checkpoint").weights["weight"], value)


def test_saving_leaves_the_three_files_and_nothing_else(tmp_path: Path, saved: Path) -> None:
    assert {file.name for file in saved.iterdir()} == {STATE, MODEL, OPTIMIZER}
    assert list(tmp_path.iterdir()) == [saved]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux for the path of a descriptor")
def test_all_of_a_checkpoint_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def note_rename(source: Path, target: Path) -> None:
        done.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    save(tmp_path / "checkpoint", make(1))
    *before, renamed, after = done
    assert renamed == "rename to checkpoint"
    assert {MODEL, OPTIMIZER} <= set(before)
    assert any(STATE in name for name in before)
    assert before[-1] == ".checkpoint.tmp"  # the folder, after the files it names
    assert after == tmp_path.name


def test_saving_again_replaces_the_checkpoint(saved: Path) -> None:
    save(saved, make(4))
    assert_same_checkpoint(load(saved), make(4))


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2, fingerprint=FINGERPRINT)
    for step in (1, 9, 10, 100):
        write(store, step)
    assert sorted(path.name for path in store.directory.iterdir()) == ["step-00000010", "step-00000100"]
    assert newest_of(store).name == "step-00000100"
    assert_same_checkpoint(store.newest(pytest.fail), make(100))


def test_an_empty_store_has_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", keep=2, fingerprint=FINGERPRINT).newest(pytest.fail) is None


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def overwrite(file: Path) -> None:
    file.write_bytes(b"from somewhere else\n")


def flip_first_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def flip_last_bit(file: Path) -> None:
    """Of the newline in the state's case, which is no damage; so of the byte before."""
    content = bytearray(file.read_bytes())
    content[-2 if file.name == STATE else -1] ^= 1
    file.write_bytes(content)


DAMAGES = [truncate, empty, overwrite, flip_first_bit, flip_last_bit, Path.unlink]


@pytest.mark.parametrize("name", [STATE, MODEL, OPTIMIZER])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_recognised_and_named(saved: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(saved / name)
    with pytest.raises(CheckpointError, match=re.escape(str(saved))) as caught:
        load(saved)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message or name == STATE


@pytest.mark.parametrize("key", ["step", "fingerprint", "stage"])
def test_a_flipped_bit_of_the_state_is_recognised_even_where_it_still_reads_well(saved: Path, key: str) -> None:
    text = (saved / STATE).read_bytes()
    content = bytearray(text)
    content[re.search(rb'"%s": "?(.)' % key.encode(), text).start(1)] ^= 1  # 3 to 2, 0 to 1, p to q
    (saved / STATE).write_bytes(content)
    assert json.loads(content)[key] != getattr(make(3).state, key)
    with pytest.raises(CheckpointError, match=STATE):
        load(saved)


FOREIGN_STATES: dict[str, Any] = {
    "no fields": {},
    "other format": {"format": 2, "step": 3},
    "list": [1, 2],
    "number": 7,
    "text": "format",
    "null": None,
}


@pytest.mark.parametrize("content", FOREIGN_STATES.values(), ids=FOREIGN_STATES.keys())
def test_a_foreign_state_is_recognised(saved: Path, content: object) -> None:
    (saved / STATE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=re.escape(str(saved))):
        load(saved)


@pytest.mark.parametrize("digests", [{}, {MODEL: "0"}, [MODEL], None, "none"], ids=str)
def test_a_state_without_the_digests_of_both_files_is_not_believed(saved: Path, digests: object) -> None:
    rewrite_state(saved, sha256=digests)
    with pytest.raises(CheckpointError, match=re.escape(str(saved))):
        load(saved)


def test_a_state_with_other_fields_is_not_believed(saved: Path) -> None:
    rewrite_state(saved, unknown=1)
    with pytest.raises(CheckpointError, match=re.escape(str(saved))):
        load(saved)


def test_the_files_of_two_checkpoints_mixed_are_recognised(tmp_path: Path, saved: Path) -> None:
    save(tmp_path / "other", make(4))
    shutil.copyfile(tmp_path / "other" / MODEL, saved / MODEL)
    with pytest.raises(CheckpointError, match=f"{MODEL}: must have the sha256"):
        load(saved)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "none"))):
        load(tmp_path / "none")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_place_of_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:  # so that all digests are right
        patch.setattr(module, "save_file", lambda _, path: path.write_bytes(pickle.dumps(Trap(tmp_path / "trap"))))
        save(tmp_path / "checkpoint", make(1))
    with pytest.raises(CheckpointError, match="SafetensorError"):
        load(tmp_path / "checkpoint")
    assert not (tmp_path / "trap").exists()


def test_the_module_can_unpickle_nothing() -> None:
    imported, attributes = set(), set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            attributes.add(node.attr)
    assert {"torch.Tensor", "safetensors.torch.load_file"} <= imported
    assert not {name for name in imported if "pickle" in name or name in ("torch", "torch.load", "shelve", "marshal")}
    assert "load" not in attributes


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
