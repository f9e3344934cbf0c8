"""Find a run in MLflow by what people call it: its id, the start of its id, or a version of the model registry."""

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smollm.tracking.deadline import within
from smollm.tracking.mlflow_store import MlflowStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ANSWER_SECONDS = 120.0
"""How long MLflow may take to find a run."""

_RUN_ID = re.compile(r"[0-9a-f]{4,32}")
_VERSION = re.compile(r"models:/([^/@]+)(?:/(\d+)|@(\w+))")


@dataclass(frozen=True)
class FoundRun:
    """A run as MLflow has it."""

    run_id: str
    name: str
    status: str
    """FINISHED, RUNNING, FAILED or KILLED."""
    tags: dict[str, str] = field(repr=False)


def can_name_a_run(text: str) -> bool:
    """Whether `text` has the form of a run's id, of its start (four characters or more) or of a registry's version."""
    return bool(_RUN_ID.fullmatch(text) or _VERSION.fullmatch(text))


def find_runs(store: MlflowStore, name: str) -> list[FoundRun]:
    """The runs that `name` names: none, or one, or several whose ids start alike.

    Args:
        store: where to look, in all of its experiments.
        name: an id or its start; or ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``.

    Raises:
        Exception: whatever the store, or the way to it, raises.
    """
    return within(_ANSWER_SECONDS, lambda: _find(store.client(), name))


def artifact_texts(store: MlflowStore, run_id: str, names: list[str]) -> dict[str, str]:
    """The text of each of these files that the run has, by name.

    Raises:
        Exception: whatever the store, or the way to it, raises.
    """

    def read() -> dict[str, str]:
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        client = store.client()
        import mlflow

        there = {artifact.path for artifact in client.list_artifacts(run_id)}
        uri = client.get_run(run_id).info.artifact_uri
        return {name: mlflow.artifacts.load_text(f"{uri}/{name}") for name in names if name in there}

    return within(_ANSWER_SECONDS, read)


def _find(client: "MlflowClient", name: str) -> list[FoundRun]:
    from mlflow.exceptions import MlflowException

    if version := _VERSION.fullmatch(name):
        try:
            model, number, alias = version.groups()
            found = (
                client.get_model_version(model, number) if number else client.get_model_version_by_alias(model, alias)
            )
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return []
        name = str(found.run_id)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    # the ids are hexadecimal, so that the pattern has no character of its own
    runs = client.search_runs(experiments, f"attributes.run_id LIKE '{name}%'")
    return [FoundRun(run.info.run_id, run.info.run_name, run.info.status, dict(run.data.tags)) for run in runs]
