"""Checks before training: does it end in time, do its checkpoints fit on the disk, does the tokenizer fit the model?

They change nothing that is computed.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smollm.config.corpus import CorpusSource
from smollm.config.file import load
from smollm.config.model import ModelConfig
from smollm.config.training import TrainingConfig
from smollm.errors import ConfigError, PipelineError, StorageError, TrainingError
from smollm.model.throughput import flops_per_token, moment_count, parameter_count
from smollm.state.files import file_stats
from smollm.state.tokens import STAGES
from smollm.state.workspace import Workspace

if TYPE_CHECKING:
    from smollm.device.hardware import Hardware

_SLOWEST = 1e10
"""FLOP/s, below those of any machine in use: what ends in time at this rate need not be measured."""

_BUSY = 2.0
"""How much faster a machine may be than measured, if it was busy with something else."""


@dataclass(frozen=True)
class Preflight:
    """Checks one training stage against `runtime.max_hours` and the disk."""

    stage: str
    model: ModelConfig
    training: TrainingConfig
    max_hours: float
    presets: Path
    """The folder of presets, one of which may fit instead."""

    @property
    def step_flops(self) -> float:
        return _step_flops(self.model, self.training)

    def is_short(self, steps: int) -> bool:
        """Whether `steps` steps end in time even on the slowest machine."""
        return self.step_flops * steps / _SLOWEST <= 3600 * self.max_hours

    def check_bound(self, steps: int, hardware: "Hardware", processes: int) -> None:
        """Refuse `steps` steps that take too long even if a step is nothing but matrix products.

        Args:
            steps: still to be taken.
            hardware: of one process.
            processes: how many share a step.

        Raises:
            TrainingError: if they take too long.
        """
        if not self.is_short(steps):
            rate = _BUSY * hardware.product_rate() * processes
            seconds = self.step_flops / rate
            self._check(steps, seconds, "at least", f"{rate / 1e9:,.0f} GFLOP/s, more than {hardware.name} reaches")

    def check_pace(self, steps: int, seconds: float) -> None:
        """Refuse `steps` steps that take too long at the measured `seconds` a step.

        Raises:
            TrainingError: if they do.
        """
        self._check(steps, seconds, "about", f"{seconds:,.2f} s a step")

    def check_disk(self, checkpoints: Path, keep: int) -> None:
        """Refuse a disk too small for the checkpoints that are kept, the best one, and the one being written.

        Args:
            checkpoints: the folder they are written to; those already there count.
            keep: how many of the newest are kept.

        Raises:
            StorageError: if there is less room.
        """
        size = checkpoint_bytes(self.model, self.training)
        there = sum(file.stat().st_size for file in checkpoints.glob("step-*/*"))
        checkpoints.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(checkpoints).free
        count = keep + 2  # the best one, and the one that is being written
        needed = count * size - there
        if free < needed:
            others = {path.parent for path in checkpoints.parents[1].glob("*/journal.jsonl")} - {checkpoints.parent}
            kept = sum(file.st_size for state in others for file in file_stats(state)) / 1e9
            drop = f" (`make drop STATE=...`: {kept:,.3g} GB are kept from before edits)" if others else ""
            raise StorageError(
                f"{self.stage}: the disk must have {needed / 1e9:,.3g} GB free for {count} checkpoints of "
                f"{size / 1e9:,.3g} GB, got {free / 1e9:,.3g} GB; free some space{drop}, or lower "
                "runtime.keep_checkpoints"
            )

    def _check(self, steps: int, seconds: float, how: str, pace: str) -> None:
        hours = steps * seconds / 3600
        if hours <= self.max_hours:
            return
        fitting = self._fitting_preset(self.step_flops / seconds)
        length = "steps" if self.training.epochs is None else "epochs"
        other = f"use `make repro PRESET={fitting}`" if fitting else f"lower {self.stage}.{length}, or the model"
        raise TrainingError(
            f"{self.stage}: must take at most runtime.max_hours ({self.max_hours:g}), got {how} {hours:,.1f} hours for "
            f"{steps} steps ({pace}); {other}, or raise runtime.max_hours"
        )

    def _fitting_preset(self, rate: float) -> str | None:
        """The largest preset that ends in time at `rate` FLOP/s, if any does."""
        hours: dict[str, float] = {}
        for path in self.presets.glob("*.yaml"):
            try:
                config = load(path)
            except PipelineError:
                continue
            training = config.training(self.stage)
            if config.corpus.pretrain.source is CorpusSource.FILES or training.steps is None:
                continue  # needs a text that may be missing
            hours[path.stem] = _step_flops(config.model, training) * training.steps / rate / 3600
        fitting = {name: value for name, value in hours.items() if value <= self.max_hours}
        return max(fitting, key=lambda name: fitting[name], default=None)


def refuse_too_long(workspace: Workspace) -> None:
    """Refuse, before the text is read, training that cannot end in time on this machine.

    Stages that DVC may not need to run for these params, and stages whose device is missing, are checked at their
    own start instead.

    Raises:
        TrainingError: if a training stage cannot end in time.
    """
    config = load(workspace.directory / "params.yaml")
    for stage in STAGES:
        training = config.training(stage)
        preflight = Preflight(stage, config.model, training, config.runtime.max_hours, workspace.directory / "presets")
        if training.steps is None:
            continue  # given in epochs of a text that is not read yet; checked when the stage starts
        if preflight.is_short(training.steps) or workspace.recorded_params(stage) == workspace.params(stage):
            continue
        from smollm.device.hardware import choose, count_processes  # imports torch, which takes seconds

        try:
            hardware, processes = choose(config.runtime), count_processes(config.runtime, training.sequences_per_step)
        except TrainingError:
            continue
        preflight.check_bound(training.steps, hardware, processes)


def check_vocabulary(tokens: int, model: ModelConfig) -> None:
    """Refuse a tokenizer with more `tokens` than the model's embedding has rows.

    Raises:
        ConfigError: if it has.
    """
    if tokens > model.vocab_size:
        raise ConfigError(
            f"params.yaml: model.vocab_size must hold the tokenizer's {tokens} tokens, "
            f"got {model.vocab_size}; raise it, or use a smaller tokenizer"
        )


def checkpoint_bytes(model: ModelConfig, training: TrainingConfig) -> int:
    """Size of a checkpoint in float32: weights, moments and, where the stage keeps one, the weights' average."""
    copies = 1 if training.ema_decay is None else 2
    return 4 * (copies * parameter_count(model) + moment_count(model, training.optimizer.kind))


def _step_flops(model: ModelConfig, training: TrainingConfig) -> float:
    return flops_per_token(model, training.sequence_length) * training.tokens_per_step
