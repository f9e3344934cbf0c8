"""What is known of how a model was made: read from the commit, the run or the workspace that has it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm.config.file import parse_values
from smollm.errors import CheckpointError
from smollm.operate.models import FoundModel, read_revision
from smollm.state.tokens import STAGES
from smollm.state.workspace import Workspace
from smollm.tracking import lookup
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.provenance import restore_command

_RECIPE = ("seed", "corpus", "tokenizer", "model", "pretrain", "finetune", "evaluation")
"""Sections of params.yaml that say what was computed."""


@dataclass(frozen=True)
class Record:
    """How a model was made. What is not known is empty."""

    stage: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    """The recipe: sections of params.yaml."""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """metrics.json of the model's stage and of the one before it, by stage, in the order of the pipeline."""
    text: dict[str, Any] = field(default_factory=dict)
    """metrics.json of `tokenize`: documents, bytes and tokens."""
    run: dict[str, Any] = field(default_factory=dict)
    """run.json: the run in MLflow, device and speed."""
    restore: str = ""
    """Commands that bring back code, params, data and checkpoint."""


def read_record(found: FoundModel, workspace: Workspace) -> Record:
    """What is known of a model that `find_model` has found.

    Raises:
        CheckpointError: its folder is no longer what the pipeline made; or MLflow does not answer.
    """
    if found.stage is None:
        return Record()
    if found.run_id is not None:
        return _of_run(found.stage, found.run_id, workspace)
    if found.revision is not None:
        revision = found.revision
        return _of_files(found.stage, lambda path: read_revision(path, revision, workspace))
    record = _of_files(found.stage, lambda path: _read(workspace.directory / path))
    recorded = _recorded_digest(found.stage, _read(workspace.directory / "dvc.lock"))
    if workspace.digest(f"models/{found.stage}") not in (recorded, None):
        raise CheckpointError(
            f"{found.shown}: must be as dvc.lock records it, got a folder that was edited or not finished; run `dvc "
            "repro`, or name a copy of it, whose card then says nothing of its making"
        )
    return record


def _of_files(stage: str, read: Callable[[str], str | None]) -> Record:
    """The record in a repository's files, of which each may be missing."""
    lock = _stages(read("dvc.lock"))
    params: dict[str, Any] = {}
    for entry in lock.values():
        params |= entry.get("params", {}).get("params.yaml", {})
    reports = {name: _json(read(f"reports/{name}/metrics.json")) for name in STAGES[: STAGES.index(stage) + 1]}
    log = next((out["md5"] for out in lock.get(stage, {}).get("outs", []) if out["path"].endswith("log.txt")), None)
    return Record(
        stage,
        _recipe(params, stage),
        {name: metrics for name, metrics in reports.items() if metrics},
        _json(read("reports/tokenize/metrics.json")),
        _json(read(f"reports/{stage}/run.json")),
        restore_command(log, [f"checkpoints/{stage}", f"models/{stage}"]) if log else "",
    )


def _of_run(stage: str, run_id: str, workspace: Workspace) -> Record:
    store = MlflowStore.of(workspace.root)
    try:
        (run,) = lookup.find_runs(store, run_id)
        texts = lookup.artifact_texts(store, run_id, ["params.yaml", "metrics.json", "run.json"])
    except Exception as error:  # whatever a store or the way to it raises
        raise CheckpointError(store.outage(error).removeprefix("ERROR: ")) from None
    metrics = _json(texts.get("metrics.json"))
    params = parse_values(texts["params.yaml"]) if "params.yaml" in texts else {}
    return Record(
        stage,
        _recipe(params, stage),
        {stage: metrics} if metrics else {},
        {},
        {**_json(texts.get("run.json")), "mlflow_run_id": run_id},
        run.tags.get("restore", ""),
    )


def _recipe(params: dict[str, Any], stage: str) -> dict[str, Any]:
    later = STAGES[STAGES.index(stage) + 1 :]
    return {name: params[name] for name in _RECIPE if name in params and name not in later}


def _recorded_digest(stage: str, lock: str | None) -> str | None:
    outputs = _stages(lock).get(stage, {}).get("outs", [])
    return next((out.get("md5") for out in outputs if out["path"] == f"models/{stage}"), None)


def _stages(lock: str | None) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = (parse_values(lock) if lock else {}).get("stages", {})
    return stages


def _json(text: str | None) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(text) if text else {}
    return values


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
