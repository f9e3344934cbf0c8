"""What is refused before a long stage: hours, and disk."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from structure import ROOT
from test_config import FULL

from smollm import preflight
from smollm.config.file import Config, load
from smollm.errors import StorageError, TrainingError
from smollm.hardware import Hardware
from smollm.preflight import Preflight, check_disk
from smollm.throughput import parameter_count


@pytest.fixture(scope="module")
def full() -> Config:
    return load(FULL)


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
    limit(tiny).check_bound(5000, cpu)
    limit(full).check_bound(1, cpu)


@pytest.mark.parametrize(("rate", "is_enough"), [(2e11, False), (3.8e12, False), (4.7e12, True), (7e14, True)])
def test_the_full_model_needs_a_machine_that_ends_in_a_day(
    full: Config, cpu: Hardware, monkeypatch: pytest.MonkeyPatch, rate: float, is_enough: bool
) -> None:
    monkeypatch.setattr(Hardware, "product_rate", lambda _: rate)
    hours = 5000 * limit(full).step_flops / rate / 3600
    assert (hours <= 24) == is_enough
    if is_enough:
        limit(full).check_bound(5000, cpu)
        return
    with pytest.raises(TrainingError) as caught:
        limit(full).check_bound(5000, cpu)
    assert str(caught.value) == (
        f"pretrain: must take at most runtime.max_hours (24), got at least {hours:,.1f} hours for 5000 steps "
        f"({rate / 1e9:,.0f} GFLOP/s, as fast as this CPU multiplies); use `make repro PRESET=tiny`, "
        "or raise runtime.max_hours"
    )


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


def test_the_whole_file_is_checked_before_the_text_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Hardware, "product_rate", lambda _: 1e11)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "presets" / "tiny.yaml").read_text())
    preflight.refuse_endless(params)
    params.write_text(FULL.read_text())
    with pytest.raises(TrainingError, match=r"^pretrain: must take"):
        preflight.refuse_endless(params)


def test_a_disk_without_room_for_the_checkpoints_is_refused(
    full: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 12 * parameter_count(full.model)
    there = tmp_path / "checkpoints" / "step-00000250"

    def free(amount: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**13, 0, int(amount)))

    free(4 * size)
    check_disk("pretrain", there.parent, full.model, keep=2)
    free(4 * size - 1)
    with pytest.raises(StorageError) as caught:
        check_disk("pretrain", there.parent, full.model, keep=2)
    assert str(caught.value) == (
        "pretrain: the disk must have 6.46 GB free for 4 checkpoints of 1.61 GB, got 6.46 GB; "
        "free some, or lower runtime.keep_checkpoints"
    )
    there.mkdir(parents=True)
    (there / "model.safetensors").write_bytes(b"x" * 1000)
    free(4 * size - 1000)
    check_disk("pretrain", there.parent, full.model, keep=2)
