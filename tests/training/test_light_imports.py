"""What training imports although it does not need it, which every start of a stage would wait for."""

import os
import pkgutil
import subprocess
import sys

from support.structure import ROOT

import smollm.model
import smollm.training

HEAVY = (
    "datasets",
    "matplotlib",
    "mlflow",
    "pandas",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "transformers",
    "triton",
)


STEP_IN_A_GROUP = f"""
from pathlib import Path
import torch
from torch import distributed
from smollm.config.file import load
from smollm.config.runtime import Precision
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.model.llama import LlamaForCausalLM
from smollm.training.assembly import Assembly
from smollm.training.optim import Optimizer
from smollm.training.step import Step

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
config = load(Path({str(ROOT / "presets" / "tiny.yaml")!r}))
model = LlamaForCausalLM(config.model)
optimizer = Optimizer(model, config.pretrain.optimizer)
hardware = Hardware(torch.device("cpu"), Precision.FP32, False, "this CPU")
scaler = torch.amp.GradScaler("cpu", enabled=False)
step = Step(Assembly(model, optimizer, hardware, Group(0, 2), 1), scaler, 1.0)
assert step._data_parallel_loss is not None
step.gradient(torch.ones(2, 2, 16, dtype=torch.long))
step.update(0.1)
distributed.destroy_process_group()
"""


def test_training_and_model_import_nothing_heavy() -> None:
    modules = [
        f"{package.__name__}.{module.name}"
        for package in (smollm.model, smollm.training)
        for module in pkgutil.iter_modules(package.__path__)
        if module.name not in ("kernels", "linear_cross_entropy")  # of a GPU alone; they need Triton
    ]
    assert heavy_after(f"import {', '.join(modules)}") == []


def test_a_step_in_a_group_imports_nothing_heavy() -> None:
    assert heavy_after(STEP_IN_A_GROUP) == []


def heavy_after(code: str) -> list[str]:
    """The heavy modules that are imported once a new process has run `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
