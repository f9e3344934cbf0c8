"""Dropout whose masks are a function of seeds alone (arXiv:1207.0580).

No generator with a state is drawn from: which numbers are zeroed follows from a seed a sequence, and from where in the
sequence and in the model they are. So a step's masks are the same on any device, compiled or not, however its
sequences are dealt out to processes and micro-batches, and when activations are computed again.

Legend: B batch, T time, H hidden.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_BITS = 31
_FACTORS = (0x7FEB352D, 0x45D9F3B)
"""Odd, and below 2^31: in int64 no product overflows."""


class Dropout(NamedTuple):
    """Which numbers of a batch are zeroed, at each of several places of a model; tensors, for one compiled code."""

    seeds: Tensor
    """(B, places) int64, below 2^31."""
    threshold: Tensor
    """Numbers are zeroed whose 31 random bits are below; an int64 scalar, 0 for none."""
    scale: Tensor
    """What the others are multiplied by, so that the expectation stays; a float32 scalar."""

    @classmethod
    def of(cls, seeds: Tensor | None, rate: float, ids: Tensor, places: int) -> "Dropout":
        """The masks of a batch.

        Args:
            seeds: (B,) int64, below 2^31; None: nothing is zeroed.
            rate: share of the numbers that are zeroed.
            ids: (B, T), the batch.
            places: how many places zero numbers of their own.
        """
        device = ids.device
        if seeds is None:
            seeds, rate = torch.zeros(len(ids), dtype=torch.long, device=device), 0.0
        seeds_of_places = _scramble(_scramble(seeds)[:, None] ^ torch.arange(places, device=device))
        threshold = torch.full((), round(rate * 2**_BITS), dtype=torch.long, device=device)
        return cls(seeds_of_places, threshold, torch.full((), 1 / (1 - rate), device=device))

    def at(self, first: int, count: int) -> "Dropout":
        """That of `count` places from `first` on."""
        return self._replace(seeds=self.seeds[:, first : first + count])

    def __call__(self, x: Tensor, place: int) -> Tensor:
        """`x` (B, T, H) with some numbers zeroed and the others scaled."""
        number = torch.arange(x.shape[1] * x.shape[2], device=x.device).view(1, *x.shape[1:])
        bits = _scramble(number ^ self.seeds[:, place, None, None])
        return torch.where(bits < self.threshold, 0.0, x * self.scale).to(x.dtype)


def _scramble(numbers: Tensor) -> Tensor:
    """Numbers below 2^31 (int64) to others, each bit of which depends on all bits: rounds of shift and multiply."""
    for factor in _FACTORS:
        numbers = (numbers ^ (numbers >> 15)) * factor & (2**_BITS - 1)
    return numbers ^ (numbers >> 16)
