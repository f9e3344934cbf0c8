"""Stands in for python3: runs a stage that kills itself, as kill -9 would, at the point of its code that KILL_AT names.

Unless the point lies in the writing of checkpoints, each checkpoint is waited for, so that the one to resume from is
known.
"""

import functools
import os
import pkgutil
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KillPoint:
    """Where a stage is killed: at a call of a function, or after its last line."""

    stage: str
    owner: str = ""
    """Module or ``module:Class`` of the function; empty: the stage is killed at its end."""
    function: str = ""
    call: int = 1
    """Which call of it, from 1."""
    is_before: bool = False
    """Whether it dies before the call, not after it."""
    takes_dvc: bool = False
    """Whether DVC is killed as well."""


KILL_POINTS = {
    "tokenizer is trained": KillPoint("tokenize", "smollm.corpus.tokenizer", "train"),
    "first file of tokens is digested": KillPoint(
        "tokenize", "smollm.corpus.encode", "file_digest", is_before=True, takes_dvc=True
    ),
    "second file of tokens is digested": KillPoint(
        "tokenize", "smollm.corpus.encode", "file_digest", call=2, is_before=True, takes_dvc=True
    ),
    "second output of tokenize is published": KillPoint(
        "tokenize", "smollm.corpus.stage", "replace_directory", call=2, takes_dvc=True
    ),
    "tokenize ends": KillPoint("tokenize", takes_dvc=True),
    "gradient of step 8 is there": KillPoint("pretrain", "smollm.training.step:Step", "update", call=8, is_before=True),
    "first step of a start begins": KillPoint(
        "pretrain", "smollm.training.trainer:Trainer", "take_step", is_before=True, takes_dvc=True
    ),
    "first file of a checkpoint is written": KillPoint("pretrain", "smollm.training.checkpoint", "save_file"),
    "validation is measured": KillPoint("pretrain", "smollm.training.evaluate", "bits_per_byte", is_before=True),
    "checkpoint is written": KillPoint("pretrain", "smollm.training.checkpoint_store:CheckpointStore", "_write"),
    "fifth token of a sample is drawn": KillPoint(
        "pretrain", "smollm.model.generate", "sample", call=5, is_before=True, takes_dvc=True
    ),
    "model is exported": KillPoint("pretrain", "smollm.model.export", "write_model"),
    "pretrain ends": KillPoint("pretrain", takes_dvc=True),
    "gradient of finetune's step 7 is there": KillPoint(
        "finetune", "smollm.training.step:Step", "update", call=7, is_before=True
    ),
    "finetune ends": KillPoint("finetune", takes_dvc=True),
}


def die(point: KillPoint) -> None:
    if point.takes_dvc:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: KillPoint) -> None:
    """Have the function of `point` kill at its call."""
    owner = pkgutil.resolve_name(point.owner)
    original: Callable[..., Any] = getattr(owner, point.function)
    calls = 0

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        is_fatal = calls == point.call
        if is_fatal and point.is_before:
            die(point)
        result = original(*args, **kwargs)
        if is_fatal:
            die(point)
        return result

    setattr(owner, point.function, counted)


def wait_for_checkpoints() -> None:
    """Have training wait for each checkpoint, which otherwise is written beside it."""
    from smollm.training.checkpoint_store import CheckpointStore

    original = CheckpointStore.save

    def save(self: CheckpointStore, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.wait()

    CheckpointStore.save = save  # type: ignore[method-assign]


def main() -> None:
    point = KILL_POINTS[os.environ["KILL_AT"]]
    sys.path[0] = str(Path.cwd())  # where `python3 -m` looks first
    _, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    is_armed = module == f"stages.{point.stage}"
    if is_armed and point.owner:
        arm(point)
    if not point.owner.startswith("smollm.training.checkpoint"):
        wait_for_checkpoints()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    if is_armed:
        die(point)


if __name__ == "__main__":
    main()
