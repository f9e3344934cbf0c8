"""Dropout whose masks are a function of seeds alone (arXiv:1207.0580).

There is no generator with a state: whether an activation is zeroed follows from its sequence's seed and from its
position in the sequence and in the model. So a step's masks are the same on any device, compiled or not, however its
sequences are split over processes and micro-batches, and when activations are recomputed.

Legend: B batch, T time, H hidden.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BITS = 31
FACTORS = (0x7FEB352D, 0x45D9F3B)
"""Odd, and below 2^31: in int64 no product overflows."""


class Dropout(NamedTuple):
    """The dropout masks of a batch, at each of several places in a model; tensors, so that it compiles only once."""

    seeds: Tensor
    """(B, places) int64, below 2^31."""
    threshold: Tensor
    """Activations whose 31 random bits are below it are zeroed; an int64 scalar, 0 for none."""
    scale: Tensor
    """What the others are multiplied by, to keep the expected value; a float32 scalar."""

    @classmethod
    def of(cls, seeds: Tensor | None, rate: float, ids: Tensor, places: int) -> "Dropout":
        """The masks of a batch.

        Args:
            seeds: (B,) int64, below 2^31; None: nothing is zeroed.
            rate: fraction of the activations that are zeroed.
            ids: (B, T), the batch.
            places: number of places in the model that apply dropout, each with a mask of its own.
        """
        device = ids.device
        if seeds is None:
            seeds, rate = torch.zeros(len(ids), dtype=torch.long, device=device), 0.0
        seeds_of_places = scramble(scramble(seeds)[:, None] ^ torch.arange(places, device=device))
        threshold = torch.full((), round(rate * 2**BITS), dtype=torch.long, device=device)
        return cls(seeds_of_places, threshold, torch.full((), 1 / (1 - rate), device=device))

    def at(self, first: int, count: int) -> "Dropout":
        """The masks of `count` places, from place `first` on."""
        return self._replace(seeds=self.seeds[:, first : first + count])

    def __call__(self, x: Tensor, place: int) -> Tensor:
        """`x` (B, T, H) with some activations zeroed and the others scaled."""
        number = torch.arange(x.shape[1] * x.shape[2], device=x.device).view(1, *x.shape[1:])
        bits = scramble(number ^ self.seeds[:, place, None, None])
        return torch.where(bits < self.threshold, 0.0, x * self.scale).to(x.dtype)


def scramble(numbers: Tensor) -> Tensor:
    """Hash numbers below 2^31 (int64) to others, whose bits depend on all bits: rounds of shift and multiply."""
    for factor in FACTORS:
        numbers = (numbers ^ (numbers >> 15)) * factor & (2**BITS - 1)
    return numbers ^ (numbers >> 16)
