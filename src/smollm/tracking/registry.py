"""A run's entry in MLflow's model registry."""

from typing import TYPE_CHECKING

from smollm.tracking.deadline import Deadline
from smollm.tracking.run_record import ModelVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CORPUS, _BITS_PER_BYTE = "metrics.corpus", "metrics.exported_bits_per_byte"
"""Tags of a version: the text it was trained on, and its bits per byte on the held-out part."""


BEST = "best"
"""Alias of the best version on the text of the newest one; `latest` is MLflow's own alias of the newest."""


def register(
    client: "MlflowClient", run_id: str, version: ModelVersion, logged_model: str | None, deadline: Deadline
) -> None:
    """Add a version of the registered model, unless the run has one, and give the best its alias.

    Args:
        client: of the store.
        run_id: whose model it is.
        version: what the registry gets.
        logged_model: id of the LoggedModel with the same weights.
        deadline: after which no further call is made.

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
        tags = version.tags | ({"logged_model": logged_model} if logged_model else {})
        client.create_model_version(version.model, source, run_id, tags=tags, description=version.description)
    deadline.check()
    name_best(client, version.model)


def name_best(client: "MlflowClient", model: str) -> None:
    """Give the alias `best` to the best version of a registered model on the text of its newest one."""
    versions = client.search_model_versions(f"name = '{model}'")
    if not versions:
        return
    corpus = max(versions, key=lambda version: int(version.version)).tags.get(_CORPUS)
    rivals = [other for other in versions if other.tags.get(_CORPUS) == corpus and _BITS_PER_BYTE in other.tags]
    if rivals:
        best = min(rivals, key=lambda other: (float(other.tags[_BITS_PER_BYTE]), int(other.version)))
        client.set_registered_model_alias(model, BEST, best.version)
