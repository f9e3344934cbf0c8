"""What is recorded of the hardware that a stage computes on."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.trainers import TrainerFactory

from smollm.config.runtime import Precision
from smollm.training.assembly import hardware_values


@pytest.mark.parametrize(
    ("precision", "length", "kernel"),
    [
        (Precision.FP32, 512, "cpu default"),
        (Precision.BF16, 512, "all scores at once"),
        (Precision.BF16, 513, "cpu default"),
    ],
)
def test_the_attention_that_a_cpu_computes_is_recorded(
    precision: Precision, length: int, kernel: str, trainers: TrainerFactory, tmp_path: Path
) -> None:
    assembly = trainers(tmp_path / "run").assembly
    assembly = replace(assembly, hardware=replace(assembly.hardware, precision=precision))
    assert hardware_values(assembly, length)["attention_kernel"] == kernel
