"""MLflow's LoggedModels of a run: one for each checkpoint that is kept, without its weights, which DVC has."""

from typing import TYPE_CHECKING

from smollm.tracking.delivery import Delivery
from smollm.tracking.run_record import KeptCheckpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric


def log_checkpoints(
    client: "MlflowClient", delivery: Delivery, run_id: str, checkpoints: list[KeptCheckpoint]
) -> str | None:
    """Log the checkpoints that have no LoggedModel yet; return the id of the exported one's."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment = delivery.state["experiment_id"]
    known = {model.name: model for model in _models_of(client, experiment, run_id)}
    exported = None
    for checkpoint in checkpoints:
        delivery.deadline.check()
        model = known.get(checkpoint.name) or client.create_logged_model(
            experiment, checkpoint.name, run_id, params=checkpoint.params, model_type="checkpoint"
        )
        if model.status != LoggedModelStatus.READY:
            delivery.deadline.check()
            client.log_batch(run_id, metrics=_metrics(delivery, checkpoint, model.model_id, run_id))
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, checkpoint.step)])
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if checkpoint.is_exported:
            exported = str(model.model_id)
    return exported


def _metrics(delivery: Delivery, checkpoint: KeptCheckpoint, model_id: str, run_id: str) -> "list[Metric]":
    """The checkpoint's validation, on the text that validates its stage.

    The run has these points already; their times are equal, so that MLflow keeps one of each.
    """
    from mlflow.entities import Metric

    dataset = next(dataset for dataset in delivery.description.datasets if dataset.context == "validation")
    time = int(checkpoint.validated * 1000)
    return [
        Metric(name, value, time, checkpoint.step, model_id, dataset.name, dataset.digest, run_id)
        for name, value in checkpoint.metrics.items()
    ]


def _models_of(client: "MlflowClient", experiment: str, run_id: str) -> "list[LoggedModel]":
    return list(client.search_logged_models([experiment], f"source_run_id = '{run_id}'"))
