"""Which state of a stage has the best validation so far."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BestValidation:
    """The best validation of a stage so far."""

    step: int
    bits_per_byte: float
    validations_since: int = 0
    """Number of validations since then, none of them better."""


def best_after(best: BestValidation | None, step: int, bits_per_byte: float) -> BestValidation:
    """The best after one more validation, at `step`; of equal ones the earlier."""
    if best is None or bits_per_byte < best.bits_per_byte:
        return BestValidation(step, bits_per_byte)
    return BestValidation(best.step, best.bits_per_byte, best.validations_since + 1)
