"""What the packages of training import before they need it, which every start of a stage would wait for."""

import os
import pkgutil
import subprocess
import sys

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


def test_training_and_model_import_nothing_heavy() -> None:
    modules = [
        f"{package.__name__}.{module.name}"
        for package in (smollm.model, smollm.training)
        for module in pkgutil.iter_modules(package.__path__)
        if module.name not in ("kernels", "linear_cross_entropy")  # of a GPU alone; they need Triton
    ]
    code = f"import sys, {', '.join(modules)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        capture_output=True,
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
