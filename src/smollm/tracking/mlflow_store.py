"""The store where MLflow keeps runs, and how to reach it."""

import errno
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from smollm.tracking import relocation
from smollm.tracking.console import shortened
from smollm.tracking.mlruns_lock import locked

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
"""MLflow's codes for what it will refuse again; not BAD_REQUEST, which it gives to database errors too."""

_OTHER_SCHEMA = "database schema"
"""In the message of an MLflow whose version does not fit the database; the error's code does not tell."""

_CONNECTION_ATTEMPTS = 4
"""MLflow's own ten attempts to open a database take nearly two minutes."""

_REASON_CHARACTERS = 800
_NOISE = re.compile(r"\(Background on this error at: \S+\)|\[SQL: .*?\]|\[parameters: .*?\]", re.DOTALL)
"""What SQLAlchemy adds to an error."""


def refuses(error: Exception) -> bool:
    """Whether MLflow has answered, and will answer the same when asked again."""
    return getattr(error, "error_code", None) in _REFUSALS or _OTHER_SCHEMA in str(error)


def sqlite_uri(database: Path) -> str:
    """Address of a SQLite database for MLflow; its absolute path may hold any character."""
    path = quote(str(database))
    # MLflow creates the folder of a `sqlite:///` address without unescaping it
    scheme = "sqlite" if path == str(database) else "sqlite+pysqlite"
    return f"{scheme}:///{path}"


@dataclass(frozen=True)
class MlflowStore:
    """Where MLflow keeps runs."""

    uri: str
    root: Path
    """The folder `mlruns` of the repository: its database, artifacts and outbox."""

    @classmethod
    def of(cls, repository: Path) -> "MlflowStore":
        """The store that MLFLOW_TRACKING_URI names, or else the repository's own database."""
        root = repository / "mlruns"
        return cls(os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(root / "mlflow.db"), root)

    @property
    def shown(self) -> str:
        """The address as people see it, which also tells stores apart.

        The repository's own is relative, so that it stays the same where the repository is moved; another one is
        without user and password.
        """
        if self.is_own:
            return f"sqlite:///{self.root.name}/{self._database.name}"
        netloc = urlsplit(self.uri).netloc
        return self.uri.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else self.uri

    def page(self, experiment_id: str, run_id: str) -> str | None:
        """Address of a run's page, without user and password; None where no server shows it."""
        return f"{self.shown}/#/experiments/{experiment_id}/runs/{run_id}" if self.is_server else None

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def _database(self) -> Path:
        """The repository's own database."""
        return self.root / "mlflow.db"

    @property
    def is_own(self) -> bool:
        return self.uri == sqlite_uri(self._database)

    def prepare(self) -> None:
        """Point the repository's own database to its artifacts, also after the repository was moved or copied.

        Raises:
            OSError: `mlruns` or the database cannot be written.
            sqlite3.Error: the database is damaged or busy.
        """
        if not self.is_own:
            return
        with locked(self.root / ".lock"):
            if self._database.exists() and not os.access(self._database, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self._database))
            relocation.follow(self._database, self.root)

    def client(self) -> "MlflowClient":
        """A client of the store, whose tables exist."""
        self.prepare()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # like DVC's; half a second of every start
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would show user and password
        for name in ("alembic", "mlflow", "mlflow.store.model_registry.abstract_store"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # what it logs it raises too
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        import mlflow
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = _CONNECTION_ATTEMPTS
        mlflow.set_tracking_uri(self.uri)
        client = mlflow.MlflowClient(self.uri)
        if self.is_server:  # which has created its own tables
            client.search_experiments(max_results=1)
            return client
        with locked(self.root / ".lock"):  # two processes that create the tables at once would fail
            client.search_experiments(max_results=1)
        return client

    def experiment_id(self, client: "MlflowClient", name: str) -> str:
        """The id of the experiment of this name, which is created if it does not exist."""
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = relocation.artifact_location(self.root, name) if self.uri.startswith("sqlite") else None
        # MLflow's pages then open on the list of runs
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
            return self.experiment_id(client, name)

    def search_runs(self, experiment: str) -> "pd.DataFrame":
        """All runs of an experiment as `mlflow.search_runs` gives them; empty if there are none."""
        import mlflow
        import pandas as pd

        known = self.client().get_experiment_by_name(experiment)
        if known is None:
            return pd.DataFrame()
        runs: pd.DataFrame = mlflow.search_runs([known.experiment_id], output_format="pandas")
        return runs

    def reason(self, error: Exception) -> str:
        """An error and its remedy in one line, without user and password."""
        text = " ".join(_NOISE.sub("", str(error)).split()).replace("<database_uri>", self.shown)
        user = urlsplit(self.uri).netloc.rpartition("@")[0]
        text = shortened(
            f"{type(error).__name__}: {text.replace(f'{user}@', '') if user else text}", _REASON_CHARACTERS
        )
        if _OTHER_SCHEMA in text:
            return f"{text} Where a newer MLflow made the database, install that MLflow instead."
        if isinstance(error, PermissionError):
            return f"{text}; make {self.root} and all in it yours: sudo chown -R $(id -u) '{self.root}'"
        return text

    def outage(self, error: Exception) -> str:
        """The line for a user whose command needs the store."""
        advice = "" if refuses(error) or isinstance(error, PermissionError) else "; try again later"
        return f"ERROR: MLflow ({self.shown}) failed: {self.reason(error)}{advice}"
