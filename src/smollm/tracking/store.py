"""Where MLflow keeps runs, and the way to it."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient


_REFUSALS = {
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
    "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE",
    "PERMISSION_DENIED",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}
"""MLflow's codes for what will be refused again; BAD_REQUEST is none, which it gives to database errors too."""


def refuses(error: Exception) -> bool:
    """Whether MLflow has answered, and will answer the same when asked again."""
    return getattr(error, "error_code", None) in _REFUSALS


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps runs."""

    uri: str
    root: Path
    """The folder `mlruns` of the repository: its database, artifacts and outbox."""

    @classmethod
    def of(cls, repository: Path) -> "Store":
        """The store that MLFLOW_TRACKING_URI names, or else the repository's own database."""
        root = repository / "mlruns"
        return cls(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow.db", root)

    @property
    def shown(self) -> str:
        """The address without user and password: it tells stores apart, whoever asks them."""
        netloc = urlsplit(self.uri).netloc
        return self.uri.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else self.uri

    def page(self, experiment_id: str, run_id: str) -> str | None:
        """Address of a run's page, without user and password; None where no server shows it."""
        return f"{self.shown}/#/experiments/{experiment_id}/runs/{run_id}" if self._is_server else None

    @property
    def _is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    def client(self) -> "MlflowClient":
        """A client of the store, whose tables exist."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would show user and password
        for name in ("alembic", "mlflow", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store"):
            logging.getLogger(name).setLevel(logging.WARNING)
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        client = mlflow.MlflowClient(self.uri)
        # two processes that make the tables at once would fail; a server has made its own
        with nullcontext() if self._is_server else locked(self.root / ".lock"):
            client.search_experiments(max_results=1)
        return client

    def experiment_id(self, client: "MlflowClient", name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        is_local = self.uri.startswith("sqlite:")
        location = (self.root / "artifacts" / name).as_uri() if is_local else None
        # MLflow's pages then open on the list of runs
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
            return self.experiment_id(client, name)

    def search_runs(self, experiment: str) -> "pd.DataFrame":
        """All runs of an experiment as `mlflow.search_runs` gives them; an empty table where there are none."""
        import mlflow
        import pandas as pd

        found = self.client().get_experiment_by_name(experiment)
        if found is None:
            return pd.DataFrame()
        runs: pd.DataFrame = mlflow.search_runs([found.experiment_id], output_format="pandas")
        return runs

    def reason(self, error: Exception) -> str:
        """What went wrong on the way to the store, in one line and without user and password."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        user = urlsplit(self.uri).netloc.rpartition("@")[0]
        return (text.replace(f"{user}@", "") if user else text)[:200]

    def outage(self, error: Exception) -> str:
        """The line for a user whose command cannot do without the store."""
        return f"ERROR: MLflow ({self.shown}) must answer, got {self.reason(error)}; try again later"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
