"""Checkpoints: written whole or not at all, verified when read, nothing unpickled.

A checkpoint is a folder:

    model.safetensors      weights by Hugging Face name, float32, the tied lm_head left out
    optimizer.safetensors  moments as <parameter name>.<moment>
    average.safetensors    the weights' moving average, where the stage has one
    trainer_state.json     step, stage, fingerprint, the best validation so far, the sha256 of each file and its own

The JSON file is written last, and the folder gets its final name after that. A finished stage has two in
``checkpoints/<stage>/``, `best` and `last`, which may be the same.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smollm.device.group import Group
from smollm.errors import CheckpointError
from smollm.state.files import apply_umask, disk_errors, file_digest, sync, sync_directory, write_json
from smollm.training.best import BestValidation

FORMAT = 3
LAST, BEST = "last", "best"
"""Folders of a finished stage's two checkpoints."""

_STATE = "trainer_state.json"
_MODEL, _OPTIMIZER, _AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint holds besides its tensors."""

    step: int
    """Optimizer steps done, counted over all stages."""
    stage: str
    fingerprint: str
    """Of the stage that wrote it: code, inputs and params."""
    loss_scale: float | None
    """fp16's loss scale, None in other precisions."""
    clean_steps: int
    """Steps since fp16's loss scale last changed."""
    best: BestValidation | None = None
    """The best validation up to this step."""


@dataclass(frozen=True)
class Checkpoint:
    """The full state of a training stage after a step."""

    state: TrainerState
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)
    """Moving average of the weights; empty if the stage has none."""

    @property
    def exported(self) -> dict[str, Tensor]:
        """The weights that were validated and that models/<stage> gets: the average if there is one."""
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
    with _reading(directory):
        state, files = _verify(directory)
        tensors = {name: load_file(directory / name) for name in files}
        return Checkpoint(state, tensors[_MODEL], tensors[_OPTIMIZER], tensors.get(_AVERAGE, {}))


def verify(directory: Path) -> TrainerState:
    """Verify the checkpoint in `directory`, tensors included, and return its state.

    Raises:
        CheckpointError: it is missing, damaged or of another format.
    """
    with _reading(directory):
        return _verify(directory)[0]


@contextmanager
def _reading(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{directory}: must be a readable checkpoint, got {reason}; train again") from error


def read_state(directory: Path) -> TrainerState:
    """The state of the checkpoint in `directory`; as `verify`, but the tensors are not read."""
    with _reading(directory):
        return _read_state(directory)[0]


def _verify(directory: Path) -> tuple[TrainerState, list[str]]:
    """The state, and the names of the files with tensors."""
    state, digests = _read_state(directory)
    for name, digest in digests.items():
        if file_digest(directory / name, "sha256") != digest:
            raise CheckpointError(
                f"{directory / name}: must have the sha256 {digest}, got another: it is damaged; train again"
            )
    return state, list(digests)


def _read_state(directory: Path) -> tuple[TrainerState, dict[str, str]]:
    """The state, and the sha256 of each file with tensors."""
    content = json.loads((directory / _STATE).read_text(encoding="utf-8"))
    if content.pop("own_sha256", None) != _digest(content) or content.pop("format") != FORMAT:
        raise CheckpointError(
            f"{directory / _STATE}: must be as it was written, in format {FORMAT}, got other content; train again"
        )
    digests = content.pop("sha256")
    return TrainerState(**{**content, "best": _best(content)}), dict(digests)


def _best(content: dict[str, Any]) -> BestValidation | None:
    return None if content["best"] is None else BestValidation(**content["best"])


def read_best(directory: Path) -> BestValidation | None:
    """The best validation so far according to the checkpoint in `directory`, whose tensors are not verified.

    Raises:
        OSError: the disk refused to read it.
    """
    try:
        return _best(json.loads((directory / _STATE).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):  # damaged, which is reported when it is loaded
        return None


def broadcast(group: Group, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Send rank 0's checkpoint, if there is one, to every rank, and return it."""
    state = group.broadcast(checkpoint.state if checkpoint else None)
    if state is None:
        return None
    nothing: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    return Checkpoint(state, *map(group.broadcast_tensors, checkpoint.tensors() if checkpoint else nothing))


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
