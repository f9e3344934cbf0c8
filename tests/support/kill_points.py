"""Stands in for python3: runs a stage that kills itself, as kill -9 would, at a given point of its code.

KILL_AT names the stage, a function, whether to die before or after it, at which of its calls, and who
dies: ``pretrain smollm.model.generate:sample before 3 process``. A ``group`` is DVC and the trainer. Unless the
point lies in the writing of checkpoints, each is waited for, so that the one to go on from is known.
"""

import functools
import importlib
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die(whom: str) -> None:
    if whom == "group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str, when: str, count: int, whom: str) -> None:
    """Have the function at `where` (``module:name`` or ``module:Class.name``) kill at its `count`-th call."""
    module, _, path = where.partition(":")
    *classes, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for one in classes:
        owner = getattr(owner, one)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls
        if mine == count and when == "before":
            die(whom)
        result = real(*args, **kwargs)
        if mine == count:
            die(whom)
        return result

    setattr(owner, name, call)


def wait_for_checkpoints() -> None:
    from smollm.training.checkpoint_store import CheckpointStore

    real = CheckpointStore.save

    def save(self: CheckpointStore, *args: Any) -> None:
        real(self, *args)
        self.wait()

    CheckpointStore.save = save  # type: ignore[method-assign]


def main() -> None:
    stage, where, when, count, whom = os.environ["KILL_AT"].split()
    sys.path[0] = str(Path.cwd())  # where `python3 -m` looks first
    _, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    is_armed = module == f"stages.{stage}"
    if is_armed and where != "the-end":
        arm(where, when, int(count), whom)
    if not where.startswith("smollm.training.checkpoint"):
        wait_for_checkpoints()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    if is_armed:
        die(whom)


if __name__ == "__main__":
    main()
