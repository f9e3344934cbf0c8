"""One trial as DVC runs it: `dvc exp run --temp`, in a session of its own, which outlives a killed sweep."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from smollm.state.files import read_json, write_atomically
from smollm.state.journal import Kind, read
from smollm.state.saved_state import SavedState, remove, saved_states
from smollm.state.workspace import Workspace
from smollm.sweep.study_file import Value, text_of
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.outbox import abandon
from smollm.tracking.sweep_run import PRUNED

_BUSY = ("Unable to acquire lock", "is busy")
"""In DVC's line where another DVC command held the repository for too long."""

_FIRST_STEPS = ("Stage '", "Running stage '")
"""In the log of an experiment that DVC has taken from its queue of one."""


@dataclass(frozen=True)
class Validation:
    step: int
    """Of the stage, from 0 on."""
    bits_per_byte: float


class Experiment:
    """A trial's experiment, running or ended.

    What its stages write is known as of the last `poll`.

    Attributes:
        name: DVC's name of it.
        stage: the stage that it is for; the stages before it run first.
        log: what DVC and the stages print.
    """

    def __init__(self, name: str, stage: str, workspace: Workspace, log: Path) -> None:
        self.name, self.stage, self.log, self._workspace = name, stage, log, workspace
        self._process = _running(name, workspace.root)
        self._states: dict[str, SavedState] = {}

    def start(self, values: Mapping[str, Value], variables: Mapping[str, str]) -> None:
        """Start it, unless it still runs: a sweep that was killed has left it behind."""
        if self._process is not None:
            return
        settings = [part for name, value in values.items() for part in ("-S", f"{name}={text_of(value)}")]
        command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", self.name, *settings, self.stage]
        with self.log.open("wb") as log:
            self._process = psutil.Popen(
                command,
                cwd=self._workspace.root,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def poll(self) -> bool:
        """Find the live states that its stages hold; returns whether its process runs."""
        if self._process is None:
            return False
        if isinstance(self._process, psutil.Popen) and self._process.poll() is not None:
            return False
        self._find_states()
        try:
            return bool(self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    @property
    def has_begun(self) -> bool:
        """Whether DVC has taken it on, so that another may be started: two at once could be taken for each other."""
        return any(line in self._text for line in _FIRST_STEPS)

    @property
    def was_shut_out(self) -> bool:
        """Whether it never began because another DVC command held the repository."""
        return not self.has_begun and any(line in self._text for line in _BUSY)

    @property
    def was_killed(self) -> bool:
        """Whether DVC ended without a word."""
        return "ERROR: " not in self._text

    def validations(self) -> Iterator[Validation]:
        """All validations of the stage so far."""
        state = self._states.get(self.stage)
        records = [] if state is None else [record for record, _ in read(state.directory / "journal.jsonl")]
        found = [record for record in records if record.kind == Kind.VALIDATION]
        for record in found:
            yield Validation(record.step - found[0].step, float(record.values["bits_per_byte"]))

    def result(self) -> float | None:
        """The stage's best bits per byte, from DVC's commit of the experiment; None where there is none."""
        git = ["git", "-C", str(self._workspace.root)]
        pattern = f"refs/exps/*/*/{self.name}"
        refs = subprocess.run(
            [*git, "for-each-ref", "--format=%(objectname)", pattern], capture_output=True, text=True, check=True
        )
        for commit in refs.stdout.split():
            path = f"{commit}:reports/{self.stage}/metrics.json"
            shown = subprocess.run([*git, "show", path], capture_output=True, text=True, check=False)
            if shown.returncode == 0:
                return float(json.loads(shown.stdout)["best_bits_per_byte"])
        return None

    @property
    def has_diverged(self) -> bool:
        """Whether its loss or gradient was not finite."""
        endings = (read_json(state.directory / "status.json") for state in self._states.values())
        return any(ending.get("tags", {}).get("error", "").startswith("NonFinite:") for ending in endings)

    @property
    def was_stopped(self) -> bool:
        """Whether a stage was asked to stop: by this sweep, by its tag in MLflow, or by a signal.

        The log says so even where the stage had no live state yet.
        """
        return re.match(r"(\w+: )?stopped by ", self.error) is not None

    @property
    def error(self) -> str:
        """The line that says why it failed: the first, since DVC adds its own."""
        lines = [line for line in self._text.splitlines() if line.startswith("ERROR: ")]
        return lines[0].removeprefix("ERROR: ") if lines else "it ended without a reason"

    def stop(self) -> None:
        """Ask the stage that runs to save its state and end; DVC then ends too, and keeps no result."""
        pids = {process.pid for process in self._descendants()}
        holders = {state.holder.pid for state in self._states.values()} & pids
        for pid in holders or ({self._process.pid} if self._process is not None else set()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def prune(self, step: int) -> None:
        """Stop it for good, since other trials were better at this step; its run in MLflow says so."""
        with suppress(OSError):  # its stage has just ended
            reason = f"pruned by its study: others were better at step {step}"
            write_atomically(self._states[self.stage].directory / PRUNED, reason)
        self.stop()

    def kill(self) -> None:
        """Kill all of its processes."""
        for process in [*self._descendants(), self._process]:
            if process is not None:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def remove_states(self) -> None:
        """Remove the live states: DVC has the result, or nobody wants it."""
        store = MlflowStore.of(self._workspace.root)
        for state in self._states.values():
            with suppress(OSError):
                remove(state, lambda directory: abandon(directory, store, time.time()))

    @property
    def _text(self) -> str:
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _descendants(self) -> list[psutil.Process]:
        try:
            return [] if self._process is None else self._process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _find_states(self) -> None:
        if self.stage not in self._states:
            pids = {process.pid for process in self._descendants()}
            for state in saved_states(self._workspace):
                if state.holder.pid in pids:
                    self._states[state.stage] = state


def _running(name: str, root: Path) -> psutil.Process | None:
    """The process of the experiment `name`, started by an earlier sweep of the repository at `root`."""
    wanted = ["exp", "run", "--temp", "--name", name]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            starts = (i for i, word in enumerate(command) if word == "exp")
            if any(command[i : i + len(wanted)] == wanted for i in starts) and Path(process.cwd()) == root.resolve():
                return process
    return None


def wait_until_ended(experiments: list[Experiment], seconds: float) -> bool:
    """Whether all have ended within this many seconds."""
    deadline = time.monotonic() + seconds
    while running := [one for one in experiments if one.poll()]:
        if time.monotonic() > deadline:
            return not running
        time.sleep(0.2)
    return True
