"""Checkpoints: exact, whole or absent, and never believed without a look."""

import ast
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import (
    AVERAGE,
    DAMAGES,
    MODEL,
    OPTIMIZER,
    STATE,
    assert_same,
    assert_same_checkpoint,
    make,
)

from smollm.errors import CheckpointError
from smollm.training import checkpoint as module
from smollm.training.checkpoint import Checkpoint, TrainerState, load, save


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
