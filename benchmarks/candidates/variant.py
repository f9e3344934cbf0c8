"""A variant of a part of a step, and the sizes at which it is compared: those of SmolLM-135M.

Without a GPU they are tiny, and in float32.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm.config.file import load

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
PRESETS = Path(__file__).resolve().parents[2] / "presets"
CONFIG = load(PRESETS / "smollm-135m.yaml")
SMALL: dict[str, Any] = {"vocab_size": 8, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1}
MODEL = (
    CONFIG.model if ON_GPU else dataclasses.replace(CONFIG.model, **SMALL, num_attention_heads=3, num_key_value_heads=1)
)

BATCH, TIME = (32, 2048) if ON_GPU else (1, 40)


@dataclass
class Choice:
    """Settings of a kernel, of which the fastest is taken."""

    settings: dict[str, Any]
    """Those that the kernel uses: replaced."""
    values: list[dict[str, Any]]
    operation: str
    """Whose time decides."""


@dataclass
class Variant:
    operations: dict[str, Callable[[], object]]
    """By name, each timed alone."""
    errors: Callable[[], dict[str, float]]
    """Relative errors against float32."""
    choices: list[Choice] = field(default_factory=list)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def blocks(names: str, *values: tuple[int, ...]) -> list[dict[str, Any]]:
    """Block sizes by name, then warps and stages; on a CPU small ones."""
    keys = [*names.split(), "num_warps", "num_stages"]
    small = (*(32, 16, 16)[: len(keys) - 2], 4, 2)
    return [dict(zip(keys, each, strict=True)) for each in (values if ON_GPU else [small])]
