"""Which state of a stage has the best validation so far."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Best:
    """The best validation, and how many followed it."""

    step: int
    bits_per_byte: float
    since: int = 0
    """Number of validations after it; none was better."""


def best_after(best: Best | None, step: int, bits_per_byte: float) -> Best:
    """The best after one more validation; of equal ones the earlier."""
    if best is None or bits_per_byte < best.bits_per_byte:
        return Best(step, bits_per_byte)
    return Best(best.step, best.bits_per_byte, best.since + 1)
