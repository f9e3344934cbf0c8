"""Batches cut from token streams: a batch is a function of (seed, stage, step).

Legend: B batch, T time.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.device.seeding import key
from smollm.errors import CorpusError
from smollm.state.tokens import TRAIN, VALIDATION, Tokens, token_directory, tokens_path

Ids = NDArray[np.int64]


class Windows:
    """The windows of a token stream, in a new random order each epoch.

    The stream, repeated endlessly, is cut into windows of T inputs; the target of a window's last input is the
    first token of the next window. Epoch e consists of the windows that begin in the e-th repetition. So every token
    is an input once per epoch, except for less than a window of tokens at the boundary between epochs. Unless T divides
    the stream, the cuts differ from epoch to epoch.
    """

    def __init__(self, tokens: Tokens, length: int, seed: int, stage: str) -> None:
        """
        Args:
            tokens: the whole stream, 1-D.
            length: T, in tokens.
            seed, stage: determine the order; `stage` is the one whose text it is.
        """
        self.tokens, self.length = tokens, length
        self.seed, self.stage = seed, stage
        self._epoch: int | None = None

    def start(self, index: int) -> int:
        """Where in the stream the window with this `index` in the random order begins; the first one has index 0."""
        epoch = index * self.length // len(self.tokens)
        if epoch != self._epoch:
            self._first = self._first_window(epoch)
            generator = np.random.default_rng(key(self.seed, "batches", self.stage, epoch))
            self._order = generator.permutation(self._first_window(epoch + 1) - self._first)
            self._epoch = epoch
        window = self._first + int(self._order[index - self._first])
        return window * self.length % len(self.tokens)

    def _first_window(self, epoch: int) -> int:
        """How many windows begin in the epochs before this one."""
        return -(-epoch * len(self.tokens) // self.length)  # rounded up

    def at(self, start: int) -> Ids:
        """T+1 tokens from `start` on; the stream wraps around at its end."""
        positions = np.arange(start, start + self.length + 1)
        return self.tokens[positions % len(self.tokens)].astype(np.int64)


@dataclass(frozen=True)
class Replay:
    """An earlier stage's text, of which a stage reads some again among its own."""

    stage: str
    tokens: Tokens
    """The whole stream, 1-D."""
    fraction: float
    """Of the stage's sequences, from 0 to below 1."""


class Batches:
    """Training windows of a stage's own text and, with `replay`, of an earlier stage's.

    Of the sequences of all steps so far, `replay.fraction` are replayed, rounded to a whole number. They come in the
    order in which the earlier stage read them, so that the model has seen them (if the sequence length is the same).
    """

    def __init__(
        self, tokens: Tokens, sequences: int, length: int, seed: int, stage: str, replay: Replay | None = None
    ) -> None:
        """
        Args:
            tokens: the stage's own text: the whole stream, 1-D.
            sequences: B, windows of a step.
            length: T, in tokens.
            seed, stage: determine the order.
            replay: the earlier stage's text, and how much of it.

        Raises:
            CorpusError: a stream is too short for one batch.
        """
        self.sequences, self.length = sequences, length
        self.seed, self.stage = seed, stage
        self._fraction = replay.fraction if replay else 0.0
        self._own = Windows(tokens, length, seed, stage)
        self._replayed = Windows(replay.tokens, length, seed, replay.stage) if replay else self._own
        self.texts = {windows.stage: windows for windows in (self._own, self._replayed)}
        for windows in self.texts.values():
            if len(windows.tokens) < sequences * length:
                path = tokens_path(token_directory(Path(), windows.stage), TRAIN)
                raise CorpusError(
                    f"{path}: a step needs {sequences} sequences of {length} tokens "
                    f"({sequences * length} tokens in all), got {len(windows.tokens)} tokens; "
                    f"add text, or lower {stage}.sequences_per_step or {stage}.sequence_length"
                )

    def __call__(self, step: int) -> tuple[Ids, Ids]:
        """Inputs and targets of step `step`, counted from 1: (B, T) int64 each."""
        windows = np.stack([text.at(start) for text, start in self.places(step)])
        return windows[:, :-1], windows[:, 1:]

    def places(self, step: int) -> list[tuple[Windows, int]]:
        """Text and start position of each sequence of step `step`; replayed sequences come last."""
        replayed = range(self._replayed_after(step - 1), self._replayed_after(step))
        own = range((step - 1) * self.sequences - replayed.start, step * self.sequences - replayed.stop)
        parts = ((self._own, own), (self._replayed, replayed))
        return [(windows, windows.start(index)) for windows, indices in parts for index in indices]

    def _replayed_after(self, steps: int) -> int:
        """How many sequences of the first `steps` steps are replayed."""
        return round(self._fraction * self.sequences * steps)


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
        path = tokens_path(token_directory(Path(), stage), VALIDATION)
        raise CorpusError(
            f"{path}: must hold a sequence of {length + 1} tokens, got {len(tokens)}; "
            f"add text, raise corpus.validation_fraction or lower {validated or stage}.sequence_length"
        )
    starts = np.arange(windows)[:, None] * length
    return tokens[starts + np.arange(length + 1)].astype(np.int64)
