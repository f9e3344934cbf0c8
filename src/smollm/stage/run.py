"""What the three stages have in common: live state, tracking, publishing, and how they end."""

import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm.config.file import read_values
from smollm.config.tracking import TrackingConfig
from smollm.errors import Interrupted, user_error
from smollm.state.files import dvc_digest, write_json
from smollm.state.journal import COMPLETE
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace, is_code
from smollm.tracking import provenance
from smollm.tracking.console import say
from smollm.tracking.delivery import Dataset, Description, Ending, Version
from smollm.tracking.outbox import abandon
from smollm.tracking.store import Store
from smollm.tracking.tracker import Tracker

_NAMED = 4
"""Differences from the preset that fit into the name of a run."""

_LONGEST_NAME, _LONGEST_DIFFERENCE = 250, 40
"""Characters of a run's name, as many as MLflow's databases take, and of one difference in it."""


@dataclass
class StageRun:
    """A stage while it runs."""

    name: str
    workspace: Workspace
    state: LiveState
    store: Store
    artifacts: dict[str, Path] = field(default_factory=dict)
    """Files for MLflow, by their path there; added while publishing."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What run.json says beside the run's identity: speed, above all."""
    registers: str | None = None
    """Model in MLflow's registry that gets a version of this run's result."""

    @property
    def reports(self) -> Path:
        return self.workspace.directory / "reports" / self.name

    def log(self, message: str, step: int = 0) -> None:
        """A line for the user and for the training log."""
        say(f"{self.name}: {message}")
        self.state.journal.event(step, message)


@dataclass(frozen=True)
class Story:
    """What MLflow is told of a stage at its start."""

    params: dict[str, str]
    datasets: list[Dataset] = field(default_factory=list)
    parent_run_id: str | None = None
    parent_mark: str | None = None


def run_stage(
    name: str,
    workspace: Workspace,
    tracking: TrackingConfig,
    story: Callable[[StageRun], Story],
    work: Callable[[StageRun], None],
    publish: Callable[[StageRun], None],
) -> None:
    """Do the stage's `work` unless it is done, `publish` its outputs, and have MLflow know of both.

    Args:
        name: of the stage in dvc.yaml.
        workspace: where it runs.
        tracking: settings of the tracker.
        story: tells MLflow's params and inputs.
        work: writes to the live state; a later call with the same state goes on with it.
        publish: makes the declared outputs from the live state, in little time.

    Raises:
        PipelineError: with a line for the user.
    """
    store = Store.of(workspace.root)
    with LiveState(name, workspace, say, lambda path: abandon(path, store, time.time())) as state:
        run = StageRun(name, workspace, state, store)
        tracker = Tracker(
            state.directory,
            store,
            tracking.send_every_seconds,
            tracking.system_metrics_every_seconds,
            tracking.finish_seconds,
            lambda line: say(f"{name}: {line}"),
        )
        tracker.start(_describe(run, tracking.experiment, story(run)))
        params = state.directory / "params.yaml"
        with _ending(run, tracker):
            shutil.copyfile(workspace.directory / "params.yaml", params)
            if state.is_complete:
                run.log("finished before; publishing its outputs again")
            else:
                work(run)
                state.mark_complete()
            tracker.drain()
            state.check_unchanged()
            publish(run)
            state.check_unchanged()
            _write_run_json(run, tracker)
            # a run that was continued belongs to the experiment that finished it
            tags = _output_tags(run) | provenance.dvc_state() | {"mlflow.runName": run_name(run.name, run.workspace)}
            run.artifacts["params.yaml"] = params
            version = _version(run, tags) if run.registers else None
        tracker.end(Ending("FINISHED", time.time(), tags, version), run.artifacts)


@contextmanager
def _ending(run: StageRun, tracker: Tracker) -> Iterator[None]:
    """End the MLflow run of a stage that does not reach its end."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, Interrupted | SystemExit) else "FAILED"
        tags = {"error": f"{type(error).__name__}: {str(error).strip()}"}
        tracker.end(Ending(status, time.time(), tags), run.artifacts)
        raise


def _describe(run: StageRun, experiment: str, story: Story) -> Description:
    workspace = run.workspace
    git = provenance.git_state(workspace.directory)
    inputs = {f"dvc.dep.{path}": digest or "" for path, digest in run.state.inputs.items() if not is_code(path)}
    started = time.time()
    return Description(
        mark=f"{run.state.fingerprint}-{int(started * 1000)}",  # the outbox sorts by the time in it
        experiment=experiment,
        run_name=run_name(run.name, run.workspace),
        started=started,
        user=provenance.user(),
        params=story.params,
        tags={
            "stage": run.name,
            "fingerprint": run.state.fingerprint,
            "mlflow.source.name": f"dvc repro {run.name}",
            **({"mlflow.source.git.commit": git["git.commit"]} if git else {}),
            **git,
            **provenance.dvc_state(),
            **inputs,
        },
        datasets=story.datasets,
        parent_run_id=story.parent_run_id,
        parent_mark=story.parent_mark,
    )


def run_name(stage: str, workspace: Workspace) -> str:
    """Stage, preset, what differs from it, and DVC's experiment."""
    words = [stage, *_differences(stage, workspace), provenance.dvc_state().get("dvc.experiment")]
    return _shortened(" ".join(filter(None, words)), _LONGEST_NAME)


def _differences(stage: str, workspace: Workspace) -> list[str]:
    """The preset that the params come from, and the stage's settings that differ from it, the first few."""
    preset = str(read_values(workspace.directory / "params.yaml").get("preset"))
    base = workspace.directory / "presets" / f"{preset}.yaml"
    changed = provenance.differences(workspace.params(stage), read_values(base)) if base.exists() else []
    more = [f"+{len(changed) - _NAMED}"] if len(changed) > _NAMED else []
    return [preset, *(_shortened(one, _LONGEST_DIFFERENCE) for one in changed[:_NAMED]), *more]


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _version(run: StageRun, tags: dict[str, str]) -> Version:
    """The entry for MLflow's registry: a pointer to the model that DVC holds, with its metrics."""
    path = f"models/{run.name}"
    pointer = {
        "path": path,
        "md5": tags[f"dvc.out.{path}"],
        "remote": provenance.dvc_remote(run.workspace.directory),
        "checkpoint": f"checkpoints/{run.name}",
        "checkpoint_md5": tags[f"dvc.out.checkpoints/{run.name}"],
        "restore": tags["restore"],
    }
    file = run.state.directory / "pointer.json"
    write_json(file, pointer)
    run.artifacts["model/pointer.json"] = file
    metrics: dict[str, Any] = json.loads((run.reports / "metrics.json").read_text(encoding="utf-8"))
    rows = "".join(f"| {name} | {value} |\n" for name, value in metrics.items())
    description = f"| | |\n|---|---|\n{rows}\n```\n{tags['restore']}\n```\n"
    shown = {**pointer, **{f"metrics.{name}": str(value) for name, value in metrics.items()}}
    return Version(str(run.registers), description, shown, "model")


def _declared(run: StageRun, kind: str) -> list[str]:
    """Paths of the stage's outputs of one kind (outs, metrics, plots) in dvc.yaml."""
    entries = run.workspace.stage(run.name).get(kind, [])
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def _output_tags(run: StageRun) -> dict[str, str]:
    """The digest of each output, and the commands that bring them back."""
    outputs = [path for path in _declared(run, "outs") if not path.startswith("reports/")]
    data = [path for path in run.state.inputs if not is_code(path) and path != "data/raw"]
    digests = {path: dvc_digest(run.workspace.directory / path) or "" for path in outputs}
    # no other execution has this one's log
    log = next(path for path in _declared(run, "outs") if path.endswith("log.txt"))
    restore = provenance.restore_command(str(dvc_digest(run.workspace.directory / log)), [*outputs, *data])
    return {"restore": restore, **{f"dvc.out.{path}": digest for path, digest in digests.items()}}


def _write_run_json(run: StageRun, tracker: Tracker) -> None:
    """Write what belongs to this execution alone: its MLflow run, its speed, its environment.

    `wall_seconds` is from the first start to the end of the work, pauses after a kill included.
    """
    journal = run.state.journal.records()
    end = next(record.time for record in journal if record.kind == COMPLETE)
    path = run.reports / "run.json"
    write_json(
        path,
        {
            "mlflow_run_id": tracker.delivery.run_id,
            "mlflow_mark": tracker.delivery.mark,
            "mlflow_experiment": tracker.delivery.state.get("experiment"),
            "mlflow_tracking_uri": _shown_uri(run),
            "fingerprint": run.state.fingerprint,
            "wall_seconds": round(end - journal[0].time, 1),
            **run.facts,
        },
    )
    environment = run.state.directory / "environment.json"
    write_json(environment, provenance.environment())
    run.artifacts |= {"run.json": path, "environment.json": environment}


def _shown_uri(run: StageRun) -> str:
    """The store's address: relative to the repository where it lies inside, without any password."""
    return run.store.shown.replace(f"{run.workspace.root}/", "")


def main(stage: Callable[[], None]) -> None:
    """Run a stage as a program: an error of the user's is one line, and the exit code is not 0."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of samples in a script that the terminal's encoding lacks
    try:
        stage()
    except Exception as error:
        found = user_error(error)
        if found is None:
            raise
        print(f"\nERROR: {found}", file=sys.stderr, flush=True)
        sys.exit(found.exit_code)
