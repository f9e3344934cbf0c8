"""The pipeline's stages, each a module that DVC runs, with `src` and the workspace itself on PYTHONPATH."""

import gc
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType

WORKSPACE = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "tokenizers", "safetensors", "mlflow", "dvc", "datasets", "omegaconf", "pandas", "matplotlib")


def _check_environment() -> None:
    """Stop with one line if a package is missing, or if `smollm` would be imported from elsewhere."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"ERROR: {sys.executable} must have the packages of requirements.lock, but lacks "
            f"{', '.join(missing)}; run `make setup`, then `. .venv/bin/activate`"
        )
    package = importlib.util.find_spec("smollm")
    expected = WORKSPACE / "src" / "smollm" / "__init__.py"
    if package is None or package.origin is None or Path(package.origin).resolve() != expected:
        sys.exit(
            f"ERROR: PYTHONPATH must lead to this workspace's own {expected.parent}, got "
            f"{package and package.origin}; run the stage with `dvc repro`"
        )


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once, without a traceback. (During training another handler saves the state first.)"""
    os.write(2, f"\nERROR: stopped by {signal.Signals(number).name}; `dvc repro` continues\n".encode())
    sys.exit(128 + number)


os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a process whose peer is gone would print torch's C++ stack
gc.disable()  # until the stage begins: it would take a fifth of the time of all imports
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, _stop)
_check_environment()
