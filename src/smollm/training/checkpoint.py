"""Checkpoints: written whole or not at all, verified when read, nothing unpickled.

A checkpoint is a folder:

    model.safetensors      weights by Hugging Face name, float32, the tied lm_head left out
    optimizer.safetensors  moments as <parameter name>.<moment>
    trainer_state.json     step, what it belongs to, the sha256 of both files and its own

The JSON file is written last, and the folder gets its final name after that.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, cuda, empty_like

from smollm.device.group import Group
from smollm.errors import CheckpointError
from smollm.model.sharding import full_tensor
from smollm.state.files import disk_errors, file_digest, sync_directory, write_json
from smollm.tracking import announce

FORMAT = 1
_STATE, _MODEL, _OPTIMIZER = "trainer_state.json", "model.safetensors", "optimizer.safetensors"


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


def save(directory: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to the new folder `directory`, atomically."""
    draft = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    tensors = {_MODEL: checkpoint.weights, _OPTIMIZER: checkpoint.moments}
    for name, values in tensors.items():
        with disk_errors(draft / name):
            save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, draft / name)
        with (draft / name).open("rb+") as file:
            os.fsync(file.fileno())
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
        for name in (_MODEL, _OPTIMIZER):
            if file_digest(directory / name, "sha256") != digests[name]:
                raise CheckpointError(
                    f"{directory / name}: must have the sha256 {digests[name]}, got another: it is damaged; train again"
                )
        state = TrainerState(**content)
        return Checkpoint(state, load_file(directory / _MODEL), load_file(directory / _OPTIMIZER))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{directory}: must be a readable checkpoint, got {reason}; train again") from error


def shared(group: Group, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Rank 0's checkpoint, in every process."""
    state = group.broadcast(checkpoint.state if checkpoint else None)
    if state is None:
        return None
    weights = group.broadcast_tensors(checkpoint.weights if checkpoint else {})
    return Checkpoint(state, weights, group.broadcast_tensors(checkpoint.moments if checkpoint else {}))


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _copy_to_host(values: dict[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Copies in host memory; from a GPU all at once, into pinned memory that torch keeps for the next time."""
    copies = {}
    for name, value in values.items():
        value = full_tensor(value.detach())
        if keeps:
            copy = empty_like(value, device="cpu", pin_memory=value.is_cuda)
            copies[name] = copy.copy_(value, non_blocking=value.is_cuda)
    if any(value.is_cuda for value in values.values()):
        cuda.synchronize()
    return copies


class CheckpointStore:
    """The newest few checkpoints of a running stage, in ``<directory>/step-<step>/``.

    They are written by a thread, one at a time, while training goes on.
    """

    def __init__(self, directory: Path, keep: int, fingerprint: str) -> None:
        """
        Args:
            directory: made if missing.
            keep: how many are kept, the newest ones.
            fingerprint: of the stage; a checkpoint of another one is foreign here.
        """
        self.directory, self.keep, self.fingerprint = directory, keep, fingerprint
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, checkpoint: Checkpoint, keeps: bool = True) -> None:
        """Copy `checkpoint` to host memory, and have the copy written.

        Args:
            checkpoint: where its tensors are divided, every process of the group saves it.
            keeps: whether this process writes it, or has a part in the gathering alone.

        Raises:
            OSError: an earlier one could not be written.
        """
        self.wait()
        weights, moments = (_copy_to_host(one, keeps) for one in (checkpoint.weights, checkpoint.moments))
        if keeps:
            self._writing = self._writer.submit(self._write, Checkpoint(checkpoint.state, weights, moments))

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def is_writing(self) -> bool:
        """Whether a checkpoint is on its way to the disk."""
        return self._writing is not None and not self._writing.done()

    def check(self) -> None:
        """Raise what `wait` raises, if it is known already."""
        if not self.is_writing():
            self.wait()

    def close(self) -> None:
        """Let a write that is under way end, well or not."""
        self._writer.shutdown()

    def _write(self, checkpoint: Checkpoint) -> None:
        for draft in self.directory.glob(".step-*.tmp"):  # of a process that was killed
            shutil.rmtree(draft)
        save(self.directory / f"step-{checkpoint.state.step:08d}", checkpoint)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; `warn` hears of each damaged or foreign one, which is removed.

        Raises:
            CheckpointError: the disk refused to read one, which may be whole and is left alone.
        """
        for directory in reversed(self._all()):
            try:
                checkpoint = load(directory)
                if checkpoint.state.fingerprint != self.fingerprint:
                    raise CheckpointError(
                        f"{directory}: must be of the run {self.fingerprint}, got one of {checkpoint.state.fingerprint}"
                    )
                return checkpoint
            except CheckpointError as error:
                if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                    raise
                warn(announce.checkpoint_damaged(error))
                shutil.rmtree(directory)
        return None

    def newest_directory(self) -> Path:
        return self._all()[-1]

    def _all(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"))
