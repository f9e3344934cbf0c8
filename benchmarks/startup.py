"""Where the time around the steps goes: the account of a small pipeline, stage by stage.

    PYTHONPATH=src:tests python3 benchmarks/startup.py [--rounds 3] [--set pretrain.steps=500 runtime.compile=true]

Runs `dvc repro` in temporary clones. For each part of a stage it prints the seconds that passed, and after the slash
the processor time of all threads of the stage, which depends less on what else the machine does: each the least of
the rounds. DVC's own time is what `dvc repro` takes besides its stages.
"""

import argparse
import functools
import importlib
import json
import os
import pkgutil
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

STAGES = ("tokenize", "pretrain", "finetune")
PARTS = {
    "imports": "interpreter and imports",
    "begin": "fingerprint, lock, run's description",
    "encode": "tokenizer and tokens",
    "preflight": "checks",
    "model": "model, rehearsal of a micro-batch",
    "validate": "validation before the first step",
    "first step": "first step",
    "steps": "other steps",
    "last state": "validation, samples, checkpoint at the end",
    "send": "wait for MLflow to have all steps",
    "publish": "publish outputs",
    "end run": "end the run in MLflow",
    "exit": "exit",
}
"""Parts of a stage in their order, and how they are printed."""

Seconds = tuple[float, float]
"""Of the clock, and of the processor."""


def run_stage(module: str) -> None:
    """Stand in for `python3 -m`: run a stage, and note in a file when each of its parts begins."""
    sys.path[0] = str(Path.cwd())
    marks: dict[str, Seconds] = {"imports": (psutil.Process().create_time(), 0.0)}

    def note(part: str | None, is_last: bool = False) -> None:
        if part and (is_last or part not in marks):
            marks[part] = time.time(), sum(os.times()[:2])

    def watch(function: str, before: str, after: str | None = None, last_after: str | None = None) -> None:
        """Note `before` and `after` around the first call of a function, and `last_after` after its last one."""
        owner, _, name = function.rpartition(".")
        holder = pkgutil.resolve_name(owner)
        original = getattr(holder, name)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            note(before)
            result = original(*args, **kwargs)
            note(after)
            note(last_after, is_last=True)
            return result

        setattr(holder, name, watched)

    stage = module.rpartition(".")[2]
    importlib.import_module(module)
    note("begin")
    if stage == "tokenize":
        watch("smollm.corpus.stage:TokenizeStage._work", "encode")
    else:
        watch("smollm.training.stage:TrainingStage._train", "preflight")
        watch("smollm.training.stage.assemble", "model")
        watch("smollm.training.trainer:Trainer.run", "validate")
        watch("smollm.training.trainer:Trainer.take_step", "first step", "steps", "last state")
    watch("smollm.tracking.observer:StageObserver.flush", "send", "publish")
    watch("smollm.tracking.observer:StageObserver.finish", "end run", "exit")
    runpy.run_module(module, run_name="__main__")
    Path(os.environ["ACCOUNT"], f"{stage}.json").write_text(json.dumps(marks))


def account(settings: dict[str, Any]) -> dict[tuple[str, str], Seconds]:
    """What each part of each stage takes in a new clone; DVC's own time is a part of no stage."""
    from support.clone import Clone

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        clone = Clone.of_working_tree(directory / "project")
        clone.set(settings)
        python = directory / "bin" / "python3"
        python.parent.mkdir()
        stage = f'"{sys.executable}" "{Path(__file__).resolve()}" --stage "$2"'
        python.write_text(f'#!/bin/sh\n{stage} && date +%s.%N > "{directory}/${{2#stages.}}.end"\n')
        python.chmod(0o755)
        began = time.time()
        with clone.start(first_on_path=str(python.parent), ACCOUNT=name) as process:
            output, _ = process.communicate()
        assert process.returncode == 0, output
        dvc = time.time() - began
        parts: dict[tuple[str, str], Seconds] = {}
        for stage in STAGES:
            marks = json.loads((directory / f"{stage}.json").read_text())
            order = sorted(marks, key=lambda part: float(marks[part][0]))
            ends = [*(marks[part] for part in order[1:]), (float((directory / f"{stage}.end").read_text()), 0.0)]
            for part, end in zip(order, ends, strict=True):
                parts[stage, part] = end[0] - marks[part][0], max(0.0, end[1] - marks[part][1])
            dvc -= ends[-1][0] - marks["imports"][0]
        return {**parts, ("", "dvc"): (dvc, 0.0)}


def show(parts: dict[tuple[str, str], Seconds]) -> None:
    """Print the table: a row for each part, a column for each stage."""

    def cells(title: str, values: list[Seconds | None]) -> None:
        shown = [f"{value[0]:6.2f} /{value[1]:6.2f}" if value else "" for value in values]
        print(f"{title:44}" + "".join(f"{cell:>18}" for cell in shown))

    print(" " * 44 + "".join(f"{stage:>18}" for stage in STAGES))
    for part, title in PARTS.items():
        cells(title, [parts.get((stage, part)) for stage in STAGES])
    for title, included in (
        ("start to first step", list(PARTS)[:7]),
        ("last step to exit", list(PARTS)[8:]),
        ("all", list(PARTS)),
    ):
        of_stages = [[parts[stage, part] for part in included if (stage, part) in parts] for stage in STAGES]
        cells(title, [(sum(value[0] for value in values), sum(value[1] for value in values)) for values in of_stages])
    print(f"DVC itself {parts['', 'dvc'][0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="params that differ from the tests'")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage)
        return
    settings = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in arguments.set)}
    rounds = [account(settings) for _ in range(arguments.rounds)]
    show({part: (min(r[part][0] for r in rounds), min(r[part][1] for r in rounds)) for part in rounds[0]})


if __name__ == "__main__":
    main()
