"""What training would take on this machine, found out before it takes it: hours, and disk.

It refuses or lets pass, and changes nothing that is computed.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smollm.config.file import Config, load
from smollm.config.model import ModelConfig
from smollm.config.training import TrainingConfig
from smollm.errors import PipelineError, StorageError, TrainingError
from smollm.throughput import flops_per_token, parameter_count

if TYPE_CHECKING:
    from smollm.hardware import Hardware

_SLOWEST = 1e10
"""FLOP/s of a machine so slow that there is none: what ends in time on it needs no measuring."""


@dataclass(frozen=True)
class Preflight:
    """Whether one training stage ends within `runtime.max_hours`."""

    stage: str
    model: ModelConfig
    training: TrainingConfig
    max_hours: float
    presets: Path
    """The folder of the presets, one of which may fit instead."""

    @property
    def step_flops(self) -> float:
        return _step_flops(self.model, self.training)

    def is_short(self, steps: int) -> bool:
        """Whether `steps` steps end in time on any machine."""
        return self.step_flops * steps / _SLOWEST <= 3600 * self.max_hours

    def check_bound(self, steps: int, hardware: "Hardware") -> None:
        """Refuse `steps` steps that would take too long if they were matrix products alone.

        Raises:
            TrainingError: they would.
        """
        if not self.is_short(steps):
            rate = hardware.product_rate()
            seconds = self.step_flops / rate
            self._check(steps, seconds, "at least", f"{rate / 1e9:,.0f} GFLOP/s, as fast as {hardware.name} multiplies")

    def check_pace(self, steps: int, seconds: float) -> None:
        """Refuse `steps` steps of so many seconds each, as measured.

        Raises:
            TrainingError: they take too long.
        """
        self._check(steps, seconds, "about", f"{seconds:,.2f} s a step")

    def _check(self, steps: int, seconds: float, how: str, pace: str) -> None:
        hours = steps * seconds / 3600
        if hours <= self.max_hours:
            return
        fitting = self._fitting_preset(self.step_flops / seconds)
        other = f"use `make repro PRESET={fitting}`" if fitting else f"lower {self.stage}.steps, or the model"
        raise TrainingError(
            f"{self.stage}: must take at most runtime.max_hours ({self.max_hours:g}), got {how} {hours:,.1f} hours for "
            f"{steps} steps ({pace}); {other}, or raise runtime.max_hours"
        )

    def _fitting_preset(self, rate: float) -> str | None:
        """The preset with the most work that `rate` FLOP/s do in time."""
        hours: dict[str, float] = {}
        for path in self.presets.glob("*.yaml"):
            try:
                config = load(path)
            except PipelineError:
                continue
            training = _training(config, self.stage)
            hours[path.stem] = _step_flops(config.model, training) * training.steps / rate / 3600
        fitting = {name: value for name, value in hours.items() if value <= self.max_hours}
        return max(fitting, key=lambda name: fitting[name], default=None)


def refuse_endless(params: Path) -> None:
    """Refuse, before the text is read, training that cannot end in time on this machine.

    Raises:
        TrainingError: a training stage cannot.
    """
    config = load(params)
    for stage in ("pretrain", "finetune"):
        training = _training(config, stage)
        preflight = Preflight(stage, config.model, training, config.runtime.max_hours, params.parent / "presets")
        if not preflight.is_short(training.steps):
            from smollm.hardware import choose  # brings torch, which a short one does not need here

            preflight.check_bound(training.steps, choose(config.runtime))


def check_disk(stage: str, checkpoints: Path, model: ModelConfig, keep: int) -> None:
    """Refuse a disk without room for the checkpoints of a stage: those kept, one being written, and DVC's.

    Args:
        stage: for the message.
        checkpoints: the folder they are written to; what it holds already counts.
        model: weights and two moments of it, in float32, are a checkpoint.
        keep: how many are kept.

    Raises:
        StorageError: there is less room.
    """
    size = 12 * parameter_count(model)
    there = sum(file.stat().st_size for file in checkpoints.rglob("*") if file.is_file())
    needed = (keep + 2) * size - there
    checkpoints.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(checkpoints).free
    if free < needed:
        raise StorageError(
            f"{stage}: the disk must have {needed / 1e9:,.3g} GB free for {keep + 2} checkpoints of "
            f"{size / 1e9:,.3g} GB, got {free / 1e9:,.3g} GB; free some, or lower runtime.keep_checkpoints"
        )


def _step_flops(model: ModelConfig, training: TrainingConfig) -> float:
    return flops_per_token(model, training.sequence_length) * training.tokens_per_step


def _training(config: Config, stage: str) -> TrainingConfig:
    return config.pretrain if stage == "pretrain" else config.finetune
