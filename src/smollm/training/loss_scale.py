"""fp16's loss scale: a gradient that overflows lowers it, and its step is skipped; many good steps raise it."""

import torch

from smollm.config.runtime import Precision
from smollm.device.hardware import Hardware
from smollm.errors import TrainingError
from smollm.state.journal import Journal, Kind

_MAX_SKIPPED = 50
"""Skipped steps in a row before giving up; long before, the initial scale of 2^16 has been halved to nothing."""


class LossScale:
    """The scale, and the steps skipped because of it. In precisions other than fp16 it is 1 and skips none."""

    def __init__(self, stage: str, hardware: Hardware, journal: Journal) -> None:
        self.stage, self.journal = stage, journal
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.precision is Precision.FP16)
        self._skips = {record.step for record in journal.records() if record.kind == Kind.SKIP}
        self._in_a_row = 0

    @property
    def is_used(self) -> bool:
        return bool(self.scaler.is_enabled())

    def value(self) -> float | None:
        """The scale, None where none is used."""
        return float(self.scaler.get_scale()) if self.is_used else None

    def clean_steps(self) -> int:
        """Steps since the scale last changed."""
        return int(self.scaler.state_dict().get("_growth_tracker", 0))

    def restore(self, value: float | None, clean_steps: int) -> None:
        """Continue with what `value` and `clean_steps` returned; a value of None leaves the initial scale."""
        if self.is_used and value is not None:
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": value, "_growth_tracker": clean_steps})

    def record(self, step: int, has_overflowed: bool) -> None:
        """Journal the step if it is skipped because its gradient overflowed.

        Raises:
            TrainingError: too many steps in a row were skipped.
        """
        self._in_a_row = self._in_a_row + 1 if has_overflowed else 0
        if not has_overflowed:
            return
        self._skips.add(step)
        total = sum(skipped <= step for skipped in self._skips)
        self.journal.append(Kind.SKIP, step, loss_scale=self.value(), total=total)
        if self._in_a_row == _MAX_SKIPPED:
            raise TrainingError(
                f"{self.stage}: the gradient overflowed at every loss scale, {_MAX_SKIPPED} steps in a row up to "
                f"step {step}; set runtime.precision to fp32 or bf16"
            )
