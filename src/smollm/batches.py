"""Batches cut from a token stream: a batch is a function of (seed, stage, step).

Legend: B batch, T time.
"""

import numpy as np
from numpy.typing import NDArray

from smollm.errors import CorpusError
from smollm.seeding import key
from smollm.tokens import Tokens

Ids = NDArray[np.int64]


class Batches:
    """Training windows in a new random order each epoch.

    An epoch cuts the token stream, from a random offset, into windows of T+1 tokens that overlap
    by one (a window's last target is the next window's first input) and shuffles them.
    """

    def __init__(self, tokens: Tokens, sequences: int, length: int, seed: int, stage: str) -> None:
        """
        Args:
            tokens: the whole stream, 1-D.
            sequences: B, windows of a step.
            length: T, in tokens.
            seed, stage: choose the order.

        Raises:
            CorpusError: the stream is too short for one batch.
        """
        # the last `length` tokens are left to the random offset
        self.windows = (len(tokens) - length) // length
        if self.windows < sequences:
            raise CorpusError(
                f"data/tokens/{stage}/train.bin: a step needs {sequences} sequences of {length} tokens "
                f"({(sequences + 1) * length} tokens in all), got {len(tokens)} tokens; "
                f"add text, or lower {stage}.sequences_per_step or {stage}.sequence_length"
            )
        self.tokens, self.sequences, self.length = tokens, sequences, length
        self.seed, self.stage = seed, stage
        self._epoch: int | None = None

    def __call__(self, step: int) -> tuple[Ids, Ids]:
        """Inputs and targets of step `step`, counted from 1: (B, T) int64 each."""
        starts = np.array(self.starts(step))[:, None]
        windows = self.tokens[starts + np.arange(self.length + 1)].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]

    def starts(self, step: int) -> list[int]:
        """Where in the stream each sequence of step `step` begins."""
        first = (step - 1) * self.sequences
        return [self._start(index) for index in range(first, first + self.sequences)]

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.windows)
        if epoch != self._epoch:
            chance = np.random.default_rng(key(self.seed, "batches", self.stage, epoch))
            self._offset = int(chance.integers(self.length))
            self._order = chance.permutation(self.windows)
            self._epoch = epoch
        return self._offset + int(self._order[place]) * self.length


def validation_windows(tokens: Tokens, length: int, most: int, stage: str) -> Ids:
    """Consecutive windows (N, T+1) over at most `most` held-out tokens (one window at least).

    Raises:
        CorpusError: not one window fits.
    """
    windows = min((len(tokens) - 1) // length, max(1, most // length))
    if windows < 1:
        raise CorpusError(
            f"data/tokens/{stage}/validation.bin: must hold a sequence of {length + 1} tokens, got {len(tokens)}; "
            f"add text, raise corpus.validation_fraction or lower {stage}.sequence_length"
        )
    starts = np.arange(windows)[:, None] * length
    return tokens[starts + np.arange(length + 1)].astype(np.int64)
