"""What MLflow's store of a clone holds, for assertions."""

from collections import defaultdict
from typing import Any

from mlflow import MlflowClient
from support.clone import Clone


def client(clone: Clone) -> MlflowClient:
    return MlflowClient(f"sqlite:///{clone.directory}/mlruns/mlflow.db")


def runs(clone: Clone) -> dict[str, list[Any]]:
    """MLflow's runs by stage, newest first."""
    store = client(clone)
    by_stage: dict[str, list[Any]] = defaultdict(list)
    for run in store.search_runs([store.get_experiment_by_name("smollm").experiment_id]):
        by_stage[run.data.tags["stage"]].append(run)
    return dict(by_stage)


def steps(clone: Clone, run_id: str, metric: str) -> list[int]:
    """The steps at which the store has a point of `metric`, in its order."""
    return [point.step for point in client(clone).get_metric_history(run_id, metric)]
