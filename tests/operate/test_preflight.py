"""What is refused before a long stage: hours, and disk."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support.presets import SMOLLM_135M
from support.structure import ROOT

from smollm.config.file import Config, load
from smollm.config.model import ModelConfig
from smollm.config.training import OptimizerKind
from smollm.device.hardware import Hardware
from smollm.errors import StorageError, TrainingError
from smollm.model.llama import LlamaForCausalLM
from smollm.operate import preflight
from smollm.operate.preflight import Preflight, checkpoint_bytes
from smollm.state.workspace import Workspace
from smollm.training.checkpoint import Checkpoint, TrainerState, save
from smollm.training.optim import Optimizer


@pytest.fixture(scope="module")
def full() -> Config:
    return load(SMOLLM_135M)


def limit(config: Config, hours: float = 24.0) -> Preflight:
    return Preflight("pretrain", config.model, config.pretrain, hours, ROOT / "presets")


def test_a_step_of_the_full_model_has_the_flops_counted_by_hand(full: Config) -> None:
    # 6 a weight (norms have no products) and 12 x layers x hidden x length for attention, each token
    token = 6 * (134_515_008 - 61 * 576) + 12 * 30 * 576 * 2048
    assert limit(full).step_flops == token * 32 * 2048


def test_what_ends_in_time_on_any_machine_is_not_measured(
    full: Config, cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hardware, "product_rate", lambda _: pytest.fail("measured"))
    tiny = load(ROOT / "presets" / "tiny.yaml")
    limit(tiny).check_bound(5000, cpu, 1)
    limit(full).check_bound(1, cpu, 1)


@pytest.mark.parametrize(("rate", "is_enough"), [(1e11, False), (1.9e12, False), (2.4e12, True), (7e14, True)])
def test_the_full_model_needs_a_machine_that_ends_in_a_day(
    full: Config, cpu: Hardware, monkeypatch: pytest.MonkeyPatch, rate: float, is_enough: bool
) -> None:
    monkeypatch.setattr(Hardware, "product_rate", lambda _: rate)
    hours = 5000 * limit(full).step_flops / (2 * rate) / 3600  # at twice the measured rate
    assert (hours <= 24) == is_enough
    if is_enough:
        limit(full).check_bound(5000, cpu, 1)
        return
    with pytest.raises(TrainingError) as caught:
        limit(full).check_bound(5000, cpu, 1)
    assert str(caught.value) == (
        f"pretrain: must take at most runtime.max_hours (24), got at least {hours:,.1f} hours for 5000 steps "
        f"({2 * rate / 1e9:,.0f} GFLOP/s, more than this CPU reaches); use `make repro PRESET=tiny`, "
        "or raise runtime.max_hours"
    )
    limit(full).check_bound(5000, cpu, math.ceil(2.4e12 / rate))


def test_a_measured_pace_counts_the_steps_that_are_left(full: Config) -> None:
    limit(full, 1.0).check_pace(3600, 1.0)
    with pytest.raises(
        TrainingError, match=r"got about 2\.0 hours for 3600 steps \(2\.00 s a step\); use .*PRESET=tiny"
    ):
        limit(full, 1.0).check_pace(3600, 2.0)


def test_where_no_preset_fits_the_steps_are_to_be_lowered(full: Config) -> None:
    with pytest.raises(TrainingError, match=r"lower pretrain\.steps, or the model, or raise runtime\.max_hours$"):
        limit(full, 1e-6).check_pace(3600, 2.0)


def test_a_preset_that_cannot_be_read_is_not_named(full: Config, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "presets" / "tiny.yaml").write_text("preset: broken")
    with pytest.raises(TrainingError, match=r"lower pretrain\.steps"):
        replace(limit(full), presets=tmp_path / "presets").check_pace(5000, 300.0)


def test_a_preset_for_a_text_of_ones_own_is_not_named(full: Config) -> None:
    with pytest.raises(TrainingError, match=r"PRESET=tiny"):  # `shakespeare` would end in time too, with more work
        limit(full).check_pace(5000, 21.6)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project with the full model's params, and nothing that has run."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    shutil.copyfile(SMOLLM_135M, tmp_path / "params.yaml")
    return Workspace(tmp_path, tmp_path)


def set_device(workspace: Workspace, device: str) -> None:
    params = workspace.directory / "params.yaml"
    params.write_text(params.read_text().replace("device: auto", f"device: {device}"))


def test_both_training_stages_are_checked_before_the_text_is_read(
    monkeypatch: pytest.MonkeyPatch, workspace: Workspace
) -> None:
    monkeypatch.setattr(Hardware, "product_rate", lambda _: 1e12)
    set_device(workspace, "cpu")
    with pytest.raises(TrainingError, match=r"^pretrain: must take"):
        preflight.refuse_too_long(workspace)
    params = workspace.directory / "params.yaml"
    params.write_text(params.read_text().replace("steps: 5000", "steps: 1000").replace("steps: 50\n", "steps: 5000\n"))
    with pytest.raises(TrainingError, match=r"^finetune: must take"):
        preflight.refuse_too_long(workspace)
    shutil.copyfile(ROOT / "presets" / "tiny.yaml", params)
    preflight.refuse_too_long(workspace)


def test_a_stage_that_may_not_run_here_refuses_no_text(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    monkeypatch.setattr(Hardware, "product_rate", lambda _: 1e11)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    set_device(workspace, "cuda")
    preflight.refuse_too_long(workspace)
    shutil.copyfile(SMOLLM_135M, workspace.directory / "params.yaml")
    set_device(workspace, "cpu")
    stages = {
        stage: {"cmd": "x", "params": {"params.yaml": workspace.params(stage)}} for stage in ("pretrain", "finetune")
    }
    (workspace.directory / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    preflight.refuse_too_long(workspace)


@pytest.mark.parametrize("kind", list(OptimizerKind))
def test_the_size_of_a_checkpoint_is_that_of_its_files(
    kind: OptimizerKind, model_config: ModelConfig, tmp_path: Path
) -> None:
    model = LlamaForCausalLM(model_config)
    training = load(SMOLLM_135M).pretrain
    training = replace(training, optimizer=replace(training.optimizer, kind=kind))
    optimizer = Optimizer(model, training.optimizer)
    model.loss(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
    for part in optimizer.parts:
        part.step()
    state = TrainerState(1, "pretrain", "0" * 16, None, 0)
    for name, average in {"plain": {}, "averaged": model.weights()}.items():
        save(tmp_path / name, Checkpoint(state, model.weights(), optimizer.state(), average))
        size = sum(file.stat().st_size for file in (tmp_path / name).iterdir())
        headers = 16_000
        decay = 0.9 if average else None
        assert 0 < size - checkpoint_bytes(model_config, replace(training, ema_decay=decay)) < headers, name


def test_a_disk_without_room_for_the_checkpoints_is_refused(
    full: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = checkpoint_bytes(full.model, full.pretrain)
    there = tmp_path / "state" / "checkpoints" / "step-00000250"

    def free(amount: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**13, 0, int(amount)))

    free(4 * size)
    limit(full).check_disk(there.parent, keep=2)
    free(4 * size - 1)
    with pytest.raises(StorageError) as caught:
        limit(full).check_disk(there.parent, keep=2)
    assert str(caught.value) == (
        "pretrain: the disk must have 6.91 GB free for 4 checkpoints of 1.73 GB, got 6.91 GB; "
        "free some space, or lower runtime.keep_checkpoints"
    )
    there.mkdir(parents=True)
    (there / "model.safetensors").write_bytes(b"x" * 1000)
    draft = there.with_name(".step-00000500.tmp")
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"x" * 1000)
    free(4 * size - 1000)
    limit(full).check_disk(there.parent, keep=2)
    free(4 * size - 1001)
    with pytest.raises(StorageError):
        limit(full).check_disk(there.parent, keep=2)


def test_a_disk_that_is_short_of_room_is_told_of_what_is_kept_from_before_edits(
    full: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**13, 0, 0))
    for state in ("one", "other"):
        (tmp_path / state / "checkpoints" / "step-00000250").mkdir(parents=True)
        (tmp_path / state / "journal.jsonl").touch()
    with (tmp_path / "other" / "checkpoints" / "step-00000250" / "model.safetensors").open("wb") as file:
        file.truncate(2_400_000_000)
    with pytest.raises(
        StorageError, match=r"free some space \(`make drop STATE=\.\.\.`: 2\.4 GB are kept from before edits\), or"
    ):
        limit(full).check_disk(tmp_path / "one" / "checkpoints", keep=2)
