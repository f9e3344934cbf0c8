"""Run a study: ``python3 -m smollm.sweep sweeps/learning-rate.yaml [--jobs N] [--show]`` (`make sweep STUDY=...`)."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smollm.config.file import load
from smollm.errors import StateError
from smollm.stage.run import main
from smollm.state.state_lock import LocksUnsupported, lock_file
from smollm.state.workspace import Workspace
from smollm.sweep import table
from smollm.sweep.runner import Runner
from smollm.sweep.search import Search, storage_errors
from smollm.sweep.shares import shares, visible_gpus
from smollm.sweep.study_file import read_study
from smollm.tracking.console import say


def sweep() -> None:
    """Run what is left of the study that the command names, and print its table.

    Raises:
        PipelineError: with a line for the user.
    """
    parser = argparse.ArgumentParser(prog="python3 -m smollm.sweep", description="Run a study of settings.")
    parser.add_argument("study", type=Path, help="its file, such as sweeps/learning-rate.yaml")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at a time (1)")
    parser.add_argument("--show", action="store_true", help="print the table of its trials, and run nothing")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}; use 1 or more")
    workspace = Workspace.find(Path.cwd())
    params = workspace.directory / "params.yaml"
    study = read_study(arguments.study, params)
    directory = workspace.root / "sweeps" / study.name
    directory.mkdir(parents=True, exist_ok=True)
    if arguments.show:
        with storage_errors(directory):
            say(table.text(study.name, Search(study, directory).rows()))
        return
    with _alone(study.name, directory), storage_errors(directory):
        search = Search(study, directory)
        if search.unfinished() or search.remaining():
            parts = shares(arguments.jobs, visible_gpus() if arguments.jobs > 1 else [], os.cpu_count() or 1)
            Runner(study, search, directory, workspace, load(params).tracking, parts).run()
        say(f"\n{table.text(study.name, search.rows())}")


@contextmanager
def _alone(name: str, directory: Path) -> Iterator[None]:
    """Keep a second process away from the study."""
    with (directory / "lock").open("a") as file:
        try:
            is_free = lock_file(file)
        except LocksUnsupported:  # then it is the user who must not start it twice
            is_free = True
        if not is_free:
            raise StateError(f"{name}: another process is running it; --show prints its progress")
        yield


if __name__ == "__main__":
    main(sweep)
