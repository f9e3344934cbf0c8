"""A run's entry in MLflow's model registry."""

from typing import TYPE_CHECKING

from smollm.tracking.deadline import Deadline
from smollm.tracking.run_record import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient


def register(client: "MlflowClient", run_id: str, version: Version, deadline: Deadline) -> None:
    """Add a version of the registered model, unless the run has one.

    Raises:
        TimeoutError: the deadline is over.
    """
    from mlflow.exceptions import MlflowException

    deadline.check()
    try:
        client.create_registered_model(version.model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    deadline.check()
    if not client.search_model_versions(f"name = '{version.model}' and run_id = '{run_id}'"):
        source = f"runs:/{run_id}/{version.source}"
        client.create_model_version(version.model, source, run_id, tags=version.tags, description=version.description)
