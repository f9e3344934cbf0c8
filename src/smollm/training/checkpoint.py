"""Checkpoints: written whole or not at all, verified when read, nothing unpickled.

A checkpoint is a folder:

    model.safetensors      weights by Hugging Face name, float32, the tied lm_head left out
    optimizer.safetensors  moments as <parameter name>.<moment>
    average.safetensors    the average of the weights, where the stage has one, like the weights
    trainer_state.json     step, what it belongs to, the sha256 of the other files and its own

The JSON file is written last, and the folder gets its final name after that.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smollm.device.group import Group
from smollm.errors import CheckpointError
from smollm.state.files import apply_umask, disk_errors, file_digest, sync, sync_directory, write_json

FORMAT = 1
_STATE, _MODEL, _OPTIMIZER = "trainer_state.json", "model.safetensors", "optimizer.safetensors"
_AVERAGE = "average.safetensors"


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint knows beside its tensors."""

    step: int
    """Optimizer steps done, counted over all stages."""
    stage: str
    fingerprint: str
    """Of the stage that wrote it: code, inputs and params."""
    loss_scale: float | None
    """fp16's loss scale, None in other precisions."""
    clean_steps: int
    """Steps since fp16's loss scale last changed."""


@dataclass(frozen=True)
class Checkpoint:
    state: TrainerState
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)
    """Of the weights; empty where the stage has none."""

    @property
    def exported(self) -> dict[str, Tensor]:
        """The weights that were validated, and that a model is made of."""
        return self.average or self.weights

    def tensors(self) -> tuple[dict[str, Tensor], ...]:
        """Weights, moments and average."""
        return self.weights, self.moments, self.average


def save(directory: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to the new folder `directory`, atomically."""
    draft = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    tensors = {_MODEL: checkpoint.weights, _OPTIMIZER: checkpoint.moments}
    if checkpoint.average:
        tensors[_AVERAGE] = checkpoint.average
    for name, values in tensors.items():
        with disk_errors(draft / name):
            save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, draft / name)
        apply_umask(draft / name)
        with disk_errors(draft / name), (draft / name).open("rb+") as file:
            sync(file.fileno())
    digests = {name: file_digest(draft / name, "sha256") for name in tensors}
    content = {"format": FORMAT, **asdict(checkpoint.state), "sha256": digests}
    write_json(draft / _STATE, {**content, "own_sha256": _digest(content)})
    sync_directory(draft)
    shutil.rmtree(directory, ignore_errors=True)
    draft.rename(directory)
    sync_directory(directory.parent)


def load(directory: Path) -> Checkpoint:
    """Read and verify the checkpoint in `directory`.

    Raises:
        CheckpointError: it is missing, damaged or of another format.
    """
    try:
        content = json.loads((directory / _STATE).read_text(encoding="utf-8"))
        if content.pop("own_sha256", None) != _digest(content) or content.pop("format") != FORMAT:
            raise CheckpointError(
                f"{directory / _STATE}: must be as it was written, in format {FORMAT}, got other content; train again"
            )
        digests = content.pop("sha256")
        for name, digest in digests.items():
            if file_digest(directory / name, "sha256") != digest:
                raise CheckpointError(
                    f"{directory / name}: must have the sha256 {digest}, got another: it is damaged; train again"
                )
        state = TrainerState(**content)
        tensors = {name: load_file(directory / name) for name in digests}
        return Checkpoint(state, tensors[_MODEL], tensors[_OPTIMIZER], tensors.get(_AVERAGE, {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{directory}: must be a readable checkpoint, got {reason}; train again") from error


def broadcast(group: Group, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Rank 0's checkpoint, on every rank."""
    state = group.broadcast(checkpoint.state if checkpoint else None)
    if state is None:
        return None
    weights = group.broadcast_tensors(checkpoint.weights if checkpoint else {})
    moments = group.broadcast_tensors(checkpoint.moments if checkpoint else {})
    return Checkpoint(state, weights, moments, group.broadcast_tensors(checkpoint.average if checkpoint else {}))


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
