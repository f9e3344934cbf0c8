"""The checkpoints of a running stage: written in the background; the newest few and the best are kept."""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from smollm.errors import CheckpointError
from smollm.model.sharding import copy_to_host
from smollm.tracking import announce
from smollm.training.checkpoint import Checkpoint, load, read_best, save, verify


class CheckpointStore:
    """The newest checkpoints of a running stage, and the best ones that they refer to, in ``<directory>/step-<step>/``.

    A thread writes them, one at a time, while training continues.
    """

    def __init__(self, directory: Path, keep: int, fingerprint: str) -> None:
        """
        Args:
            directory: made if missing.
            keep: how many are kept, the newest ones.
            fingerprint: of the stage; a checkpoint with another fingerprint is foreign.
        """
        self.directory, self.keep, self.fingerprint = directory, keep, fingerprint
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy `checkpoint` to host memory, and write the copy in the background; called by every rank if sharded.

        Raises:
            OSError: an earlier one could not be written.
        """
        self.wait()
        copies = [copy_to_host(tensors, keep=True) for tensors in checkpoint.tensors()]
        self._writing = self._writer.submit(self._write, Checkpoint(checkpoint.state, *copies))

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
        """As `wait`, but return at once if the write has not ended."""
        if not self.is_writing():
            self.wait()

    def close(self) -> None:
        """Wait for a write in progress, whether it succeeds or fails."""
        self._writer.shutdown()

    def _write(self, checkpoint: Checkpoint) -> None:
        for draft in self.directory.glob(".step-*.tmp"):  # of a process that was killed
            shutil.rmtree(draft)
        save(self.directory_of(checkpoint.state.step), checkpoint)
        kept = self._all()[-self.keep :]
        kept += [self.directory_of(best.step) for best in map(read_best, kept) if best]
        for old in self._all():
            if old not in kept:
                shutil.rmtree(old)

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, which may be damaged; None: there is none."""
        directories = self._all()
        return int(directories[-1].name.removeprefix("step-")) if directories else None

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest intact checkpoint; each damaged or foreign one is removed, with a line to `warn`.

        Raises:
            CheckpointError: the disk refused to read one, which may be intact and is kept.
        """
        for directory in reversed(self._all()):
            try:
                checkpoint = load(directory)
                if checkpoint.state.fingerprint != self.fingerprint:
                    raise CheckpointError(
                        f"{directory}: must be of the run {self.fingerprint}, got one of {checkpoint.state.fingerprint}"
                    )
                return self._without_lost_best(checkpoint, warn)
            except CheckpointError as error:
                _raise_if_unreadable(error)
                warn(announce.checkpoint_damaged(error))
                shutil.rmtree(directory)
        return None

    def _without_lost_best(self, checkpoint: Checkpoint, warn: Callable[[str], None]) -> Checkpoint:
        """`checkpoint`, without its best state if that is damaged: the next validation is then the best."""
        state = checkpoint.state
        if state.best is None or state.best.step in (0, state.step):  # the initial weights are not kept
            return checkpoint
        directory = self.directory_of(state.best.step)
        try:
            verify(directory)
        except CheckpointError as error:
            _raise_if_unreadable(error)
            warn(announce.best_damaged(error))
            shutil.rmtree(directory, ignore_errors=True)
            return replace(checkpoint, state=replace(state, best=None))
        return checkpoint

    def directory_of(self, step: int) -> Path:
        """The folder of the checkpoint after `step`, if it is kept."""
        return self.directory / f"step-{step:08d}"

    def _all(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"))


def _raise_if_unreadable(error: CheckpointError) -> None:
    """Re-raise an error of the disk: the checkpoint that it cannot read now may be intact."""
    if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
        raise error


class NoCheckpointStore(CheckpointStore):
    """The store of ranks other than 0: takes part in gathering sharded tensors, and writes nothing."""

    def __init__(self) -> None:
        super().__init__(Path(), 1, "")

    def save(self, checkpoint: Checkpoint) -> None:
        for tensors in checkpoint.tensors():
            copy_to_host(tensors, keep=False)

    def newest(self, warn: Callable[[str], None]) -> None:
        return None
