"""Batches cut from a token stream: a batch is a function of (seed, stage, step).

Legend: B batch, T time.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.device.seeding import key
from smollm.errors import CorpusError
from smollm.state.tokens import Tokens

Ids = NDArray[np.int64]


class Batches:
    """Training windows in a new random order each epoch.

    The token stream, repeated endlessly, is cut into windows of T inputs; the target of a window's last input is the
    first token of the next window. Epoch e consists of the windows that begin in the e-th repetition. So every token
    is an input once per epoch, except for less than a window of tokens at the boundary between epochs. Unless T divides
    the stream, the cuts differ from epoch to epoch.
    """

    def __init__(self, tokens: Tokens, sequences: int, length: int, seed: int, stage: str) -> None:
        """
        Args:
            tokens: the whole stream, 1-D.
            sequences: B, windows of a step.
            length: T, in tokens.
            seed, stage: determine the order.

        Raises:
            CorpusError: the stream is too short for one batch.
        """
        if len(tokens) < sequences * length:
            raise CorpusError(
                f"data/tokens/{stage}/train.bin: a step needs {sequences} sequences of {length} tokens "
                f"({sequences * length} tokens in all), got {len(tokens)} tokens; "
                f"add text, or lower {stage}.sequences_per_step or {stage}.sequence_length"
            )
        self.tokens, self.sequences, self.length = tokens, sequences, length
        self.seed, self.stage = seed, stage
        self._epoch: int | None = None

    def __call__(self, step: int) -> tuple[Ids, Ids]:
        """Inputs and targets of step `step`, counted from 1: (B, T) int64 each."""
        windows = np.stack([self.window(start) for start in self.starts(step)])
        return windows[:, :-1], windows[:, 1:]

    def starts(self, step: int) -> list[int]:
        """The position in the stream at which each sequence of step `step` begins."""
        first = (step - 1) * self.sequences
        return [self._start(index) for index in range(first, first + self.sequences)]

    def window(self, start: int) -> Ids:
        """T+1 tokens from `start` on; the stream wraps around at its end."""
        positions = np.arange(start, start + self.length + 1)
        return self.tokens[positions % len(self.tokens)].astype(np.int64)

    def _start(self, index: int) -> int:
        epoch = index * self.length // len(self.tokens)
        if epoch != self._epoch:
            self._first, following = (-(-e * len(self.tokens) // self.length) for e in (epoch, epoch + 1))
            generator = np.random.default_rng(key(self.seed, "batches", self.stage, epoch))
            self._order = generator.permutation(following - self._first)
            self._epoch = epoch
        window = self._first + int(self._order[index - self._first])
        return window * self.length % len(self.tokens)


class BatchReader:
    """Reads this process's part of the batches; for a GPU it reads one while the previous one is computed."""

    def __init__(self, batches: Batches, group: Group, hardware: Hardware) -> None:
        self.batches, self.is_cuda = batches, hardware.device.type == "cuda"
        self._mine = group.local_slice(batches.sequences)
        self._prefetched: tuple[int, Tensor] | None = None
        """A step and its batch."""

    def read(self, step: int) -> Tensor:
        """Inputs and targets of step `step`, (2, B, T), B being this process's sequences; pinned for a GPU."""
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None and prefetched[0] == step:
            return prefetched[1]
        batch = torch.from_numpy(np.stack([ids[self._mine] for ids in self.batches(step)]))
        return batch.pin_memory() if self.is_cuda else batch

    def dropout_seeds(self, step: int) -> Tensor:
        """A number below 2^31 for each of this process's sequences of step `step`, (B,) int64."""
        batches = self.batches
        generator = np.random.default_rng(key(batches.seed, "dropout", batches.stage, step))
        return torch.from_numpy(generator.integers(2**31, size=batches.sequences)[self._mine])

    def prefetch(self, step: int) -> None:
        """Read the batch of step `step` ahead, if the device is a GPU, which computes in the meantime."""
        if self.is_cuda:
            self._prefetched = step, self.read(step)


def validation_windows(tokens: Tokens, length: int, max_tokens: int, stage: str, validated: str | None = None) -> Ids:
    """Consecutive windows (N, T+1) over at most `max_tokens` held-out tokens (one window at least).

    Args:
        stage: the stage whose text it is.
        validated: the stage that is validated on it, if another.

    Raises:
        CorpusError: not one window fits.
    """
    windows = min((len(tokens) - 1) // length, max(1, max_tokens // length))
    if windows < 1:
        raise CorpusError(
            f"data/tokens/{stage}/validation.bin: must hold a sequence of {length + 1} tokens, got {len(tokens)}; "
            f"add text, raise corpus.validation_fraction or lower {validated or stage}.sequence_length"
        )
    starts = np.arange(windows)[:, None] * length
    return tokens[starts + np.arange(length + 1)].astype(np.int64)
