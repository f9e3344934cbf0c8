"""Checks that the processes of a group can train together: same settings, code, data and kind of hardware."""

from dataclasses import asdict

import torch

from smollm.config.fields import Auto
from smollm.config.file import near_divisors
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.errors import TrainingError
from smollm.state.workspace import Workspace
from smollm.tracking import provenance
from smollm.training.settings import Settings

_PER_MACHINE = ("device", "processes", "max_restarts", "max_hours")
"""Settings of `runtime` that may differ between machines."""


def check_group(settings: Settings, group: Group) -> None:
    """Check that the group can divide a step's sequences evenly. (Settings alone are checked in `config.file`.)

    Raises:
        TrainingError: it cannot.
    """
    sequences, micro_batch = settings.training.sequences_per_step, settings.runtime.micro_batch_size
    if sequences % group.size:
        raise TrainingError(
            f"{settings.stage}: the number of processes on all machines must divide the {sequences} sequences of a "
            f"step, got {group.size}; use {near_divisors(sequences, group.size)}"
        )
    share = sequences // group.size
    if not isinstance(micro_batch, Auto) and share % micro_batch:
        raise TrainingError(
            f"params.yaml: runtime.micro_batch_size must divide the {share} sequences that each of {group.size} "
            f"processes has of a {settings.stage} step, got {micro_batch}; use {near_divisors(share, micro_batch)}"
        )


def check_machines(settings: Settings, workspace: Workspace, group: Group) -> None:
    """Check that all machines have the same params, code, data and torch.

    Raises:
        TrainingError: they differ; it names the first difference.
    """
    # processes of one machine share its files; only rank 0 reads the previous stage's checkpoint
    is_first = group.local_rank == 0 and group.size > group.local_size
    dependencies = workspace.stage(settings.stage)["deps"] if is_first else []
    inputs = {path: workspace.digest(path) for path in dependencies if not path.startswith("checkpoints")}
    runtime = {f"runtime.{k}": str(v) for k, v in asdict(settings.runtime).items() if k not in _PER_MACHINE}
    versions = {"torch": torch.__version__}
    everyone = group.all_gather({**workspace.params(settings.stage), **inputs, **runtime, **versions})
    for rank, other in enumerate(everyone):
        odd = provenance.differences(other, everyone[0])
        if odd:
            raise TrainingError(
                f"{settings.stage}: all machines must have the same params, code, data and torch, got {odd[0]} where "
                f"rank {rank} runs, unlike rank 0; bring them to one commit and `dvc pull`"
            )


def check_hardware(settings: Settings, hardware: Hardware, group: Group) -> None:
    """Check that all processes compute on the same kind of device and in the same precision.

    Raises:
        TrainingError: they do not.
    """
    kinds = sorted(set(group.all_gather(f"{hardware.device.type} in {hardware.precision.value}")))
    if len(kinds) > 1:
        raise TrainingError(
            f"{settings.stage}: all processes must compute alike, got {' and '.join(kinds)}; "
            "set runtime.device and runtime.precision to what all machines have"
        )
