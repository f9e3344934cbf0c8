"""Send a stage's journal to MLflow: the only module that knows MLflow, and nobody waits for it.

The journal is written first. A `Delivery` knows how far MLflow has been told of it and sends the
rest; where MLflow does not answer, training goes on, and the rest is sent later: by the same
stage, by the next one, or by ``python -m smollm.tracking`` (`make sync`).

A delivery is a folder of its own, so that it outlives the stage:

    journal.jsonl      what happened
    description.json   name, params, tags and inputs of the run, known at its start
    delivery.json      the run's id, and what MLflow has acknowledged
    status.json        how the run ended, with the last tags; missing while it runs
    artifacts/         files to upload at the end
"""

import fcntl
import json
import logging
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from smollm.files import link_or_copy, write_json
from smollm.journal import EVENT, Record, read

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS = {
    ("step", "train_loss"): "train/loss",
    ("step", "gradient_norm"): "train/gradient_norm",
    ("step", "learning_rate"): "train/learning_rate",
    ("validation", "loss"): "validation/loss",
    ("validation", "bits_per_byte"): "validation/bits_per_byte",
    ("speed", "tokens_per_second"): "speed/tokens_per_second",
    ("speed", "step_ms"): "speed/step_ms",
    ("speed", "mfu"): "speed/mfu",
    ("speed", "goodput"): "speed/goodput",
    ("speed", "peak_memory_gib"): "memory/peak_gib",
}
"""MLflow's name for each number of the journal; a `result` brings names of its own."""

_BATCH = 900  # MLflow takes at most 1000 metrics a call
_PARAMS_BATCH = 100


@dataclass(frozen=True)
class Dataset:
    """A text that a run learned from, or is measured on."""

    name: str
    digest: str
    context: str
    """training or validation."""
    path: str
    profile: dict[str, Any]
    """Counts: documents, bytes, tokens."""


@dataclass(frozen=True)
class Description:
    """What is known of a run when it starts."""

    experiment: str
    run_name: str
    started: float
    """Seconds since the epoch."""
    user: str
    params: dict[str, str]
    tags: dict[str, str]
    datasets: list[Dataset] = field(default_factory=list)
    parent_run_id: str | None = None


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    status: str
    """FINISHED, FAILED or KILLED."""
    ended: float
    tags: dict[str, str] = field(default_factory=dict)


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
    def key(self) -> str:
        """Tells stores apart without giving away a password."""
        return sha256(self.uri.encode()).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """The address without user and password."""
        netloc = urlsplit(self.uri).netloc
        return self.uri.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else self.uri

    def client(self) -> "MlflowClient":
        """A client of the store, whose tables exist."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        client = mlflow.MlflowClient(self.uri)
        self.root.mkdir(parents=True, exist_ok=True)
        with _locked(self.root / ".lock"):  # two processes that make the tables at once would fail
            client.search_experiments(max_results=1)
        return client

    def experiment_id(self, client: "MlflowClient", name: str) -> str:
        with _locked(self.root / ".lock"):
            found = client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            is_local = self.uri.startswith("sqlite:")
            location = (self.root / "artifacts" / name).as_uri() if is_local else None
            # MLflow's pages then open on the list of runs
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=location, tags=tags))


class Delivery:
    """One run on its way to MLflow."""

    def __init__(self, directory: Path, store: Store) -> None:
        self.directory, self.store = directory, store
        self._state_file = directory / "delivery.json"
        state = _read_json(self._state_file)
        self.state: dict[str, Any] = state if state.get("store") == store.key else {"store": store.key, "offset": 0}

    @property
    def run_id(self) -> str | None:
        run_id: str | None = self.state.get("run_id")
        return run_id

    @property
    def is_done(self) -> bool:
        return bool(self.state.get("done"))

    def send(self, client: "MlflowClient") -> None:
        """Send all that MLflow has not acknowledged; raises what MLflow raises."""
        if not (self.directory / "description.json").exists():
            self._note(done=True)  # killed before it could say what it was
            return
        run_id = self.run_id or self._create_run(client)
        if not self.state.get("described"):
            self._describe(client, run_id)
        self._send_journal(client, run_id)
        ending = _read_json(self.directory / "status.json")
        if ending and not self.is_done:
            self._finish(client, run_id, Ending(**ending))

    def reopen(self) -> None:
        """Go on with a run that ended early."""
        (self.directory / "status.json").unlink(missing_ok=True)
        if self.run_id:
            self._note(done=False, reopen=True)

    def end(self, ending: Ending, artifacts: dict[str, Path]) -> None:
        """Note how the run ended, with the files to upload, by their path in MLflow."""
        for name, path in artifacts.items():
            link_or_copy(path, self.directory / "artifacts" / name)
        write_json(self.directory / "status.json", asdict(ending))

    def _note(self, **values: object) -> None:
        self.state |= values
        write_json(self._state_file, self.state)

    def _description(self) -> Description:
        values = _read_json(self.directory / "description.json")
        return Description(**{**values, "datasets": [Dataset(**one) for one in values["datasets"]]})

    def _create_run(self, client: "MlflowClient") -> str:
        description = self._description()
        experiment = self.store.experiment_id(client, description.experiment)
        # a kill between MLflow's answer and our note of it must not leave a second run
        mark = f"{self.directory.name}-{int(description.started * 1000)}"
        known = client.search_runs([experiment], f"tags.`smollm.delivery` = '{mark}'", max_results=1)
        if known:
            run_id = str(known[0].info.run_id)
        else:
            tags = {
                "smollm.delivery": mark,
                "mlflow.user": description.user,
                "mlflow.source.type": "JOB",
                **self._parent_tag(client, description.parent_run_id),
                **description.tags,
            }
            started = int(description.started * 1000)
            run_id = str(client.create_run(experiment, started, tags, description.run_name).info.run_id)
        self._note(run_id=run_id, experiment=description.experiment, experiment_id=experiment)
        return run_id

    @staticmethod
    def _parent_tag(client: "MlflowClient", parent: str | None) -> dict[str, str]:
        if parent is None:
            return {}
        from mlflow.exceptions import MlflowException

        try:
            client.get_run(parent)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {"smollm.parent_in_another_store": parent}
        return {"mlflow.parentRunId": parent}

    def _describe(self, client: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag, Param

        description = self._description()
        params = [Param(name, value[:6000]) for name, value in description.params.items()]
        for start in range(0, len(params), _PARAMS_BATCH):
            client.log_batch(run_id, params=params[start : start + _PARAMS_BATCH])
        inputs = [
            DatasetInput(
                Entity(one.name, one.digest, "local", json.dumps({"uri": one.path}), profile=json.dumps(one.profile)),
                [InputTag("mlflow.data.context", one.context)],
            )
            for one in description.datasets
        ]
        if inputs:
            client.log_inputs(run_id, inputs)
        self._note(described=True)

    def _send_journal(self, client: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Metric, RunTag

        if self.state.get("reopen"):
            client.update_run(run_id, status="RUNNING")
            if "error" in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, "error")
            self._note(reopen=False)
        batch: list[Metric] = []
        tags: list[RunTag] = []
        samples: list[Record] = []
        start = offset = self.state["offset"]
        for record, after in read(self.directory / "journal.jsonl", start):
            offset = after
            batch += [Metric(name, value, int(record.time * 1000), record.step) for name, value in metrics(record)]
            if record.kind == "hardware":
                tags += [RunTag(f"hardware.{name}", str(value)) for name, value in record.values.items()]
            if record.kind == "sample":
                samples.append(record)
            if len(batch) >= _BATCH:
                self._send_batch(client, run_id, batch, tags, samples, offset)
                batch, tags, samples = [], [], []
        if offset > start:
            self._send_batch(client, run_id, batch, tags, samples, offset)

    def _send_batch(
        self, client: "MlflowClient", run_id: str, batch: list[Any], tags: list[Any], samples: list[Record], offset: int
    ) -> None:
        if batch or tags:
            client.log_batch(run_id, metrics=batch, tags=tags)
        for record in samples:
            texts = zip(record.values["prompts"], record.values["texts"], strict=True)
            text = "\n\n----\n\n".join(prompt + text for prompt, text in texts)
            client.log_text(run_id, text + "\n", f"samples/step-{record.step:08d}.txt")
        if samples:
            self._send_sample_table(client, run_id)
        self._note(offset=offset)

    def _send_sample_table(self, client: "MlflowClient", run_id: str) -> None:
        """Write all samples as the table that MLflow compares across runs.

        `log_table` would append to what is there, and so repeat rows that are sent twice.
        """
        rows = [
            [record.step, prompt, text]
            for record, _ in read(self.directory / "journal.jsonl")
            if record.kind == "sample"
            for prompt, text in zip(record.values["prompts"], record.values["texts"], strict=True)
        ]
        client.log_dict(run_id, {"columns": ["step", "prompt", "text"], "data": rows}, "samples.json")
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": "samples.json", "type": "table"}]))

    def _finish(self, client: "MlflowClient", run_id: str, ending: Ending) -> None:
        artifacts = self.directory / "artifacts"
        if artifacts.exists():
            client.log_artifacts(run_id, str(artifacts))
        for name, value in ending.tags.items():
            client.set_tag(run_id, name, value[:5000])
        client.set_terminated(run_id, ending.status, int(ending.ended * 1000))
        self._note(done=True)


def metrics(record: Record) -> Iterator[tuple[str, float]]:
    """MLflow's metrics in a record of the journal."""
    if record.kind == "result":
        yield from record.values.items()
    elif record.kind != EVENT:
        for name, value in record.values.items():
            metric = METRICS.get((record.kind, name))
            # MLflow stores infinity as the largest number, which ruins the axis of a chart
            if metric is not None and value is not None and math.isfinite(value):
                yield metric, float(value)


class Tracker:
    """Sends a running stage's journal from a thread of its own."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        send_every_seconds: float,
        system_metrics_every_seconds: float,
        warn: Callable[[str], None],
    ) -> None:
        self.delivery = Delivery(directory, store)
        self.store, self._warn = store, warn
        self._every, self._system_every = send_every_seconds, system_metrics_every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._client: MlflowClient | None = None
        self._monitor: Any = None
        self._warned = False
        self.error: str | None = None
        """Why MLflow could not be told the last time, or None."""

    def start(self, description: Description) -> None:
        """Begin or go on with the run; returns at once."""
        file = self.delivery.directory / "description.json"
        if file.exists():
            self.delivery.reopen()
        else:
            write_json(file, asdict(description))
        self._thread.start()

    def drain(self) -> None:
        """Stop the thread and send what is left, if MLflow answers."""
        self._stop.set()
        self._thread.join()
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._try()

    def end(self, ending: Ending, artifacts: dict[str, Path]) -> None:
        """End the run; where MLflow does not answer, leave all of it in the outbox."""
        self.drain()
        self.delivery.end(ending, artifacts)
        self._try()
        if not self.delivery.is_done:
            put_aside(self.delivery.directory, self.store)
            self._warn(f"MLflow ({self.store.shown}) lacks part of this run; `make sync` sends it later")

    def _work(self) -> None:
        self._try()
        if self.error is None:
            send_outbox(self._client_of_store(), self.store, self._warn)
        while not self._stop.wait(self._every):
            self._try()

    def _try(self) -> None:
        try:
            self.delivery.send(self._client_of_store())
            if self._monitor is None and not self._stop.is_set():
                self._monitor = self._start_monitor()
            self.error = None
        except Exception as error:  # whatever a store or the way to it raises, training goes on
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if not self._warned:
                self._warned = True
                self._warn(f"MLflow ({self.store.shown}) does not answer; training goes on. {self.error}")

    def _client_of_store(self) -> "MlflowClient":
        if self._client is None:
            self._client = self.store.client()
        return self._client

    def _start_monitor(self) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        monitor = SystemMetricsMonitor(self.delivery.run_id, sampling_interval=self._system_every, resume_logging=True)
        monitor.start()
        return monitor


def put_aside(directory: Path, store: Store) -> None:
    """Copy a delivery to the outbox, from where it is sent later."""
    if not (directory / "description.json").exists():
        return
    target = store.root / "outbox" / directory.name
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name in ("journal.jsonl", "description.json", "delivery.json", "status.json"):
        if (directory / name).exists():
            shutil.copyfile(directory / name, draft / name)
    if (directory / "artifacts").exists():
        shutil.copytree(directory / "artifacts", draft / "artifacts")
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)


def abandon(directory: Path, store: Store, ended: float) -> None:
    """Have the run of a live state that nobody will continue closed as KILLED."""
    delivery = Delivery(directory, store)
    if not delivery.is_done:
        if not (directory / "status.json").exists():
            delivery.end(Ending("KILLED", ended), {})
        put_aside(directory, store)


def send_outbox(client: "MlflowClient", store: Store, warn: Callable[[str], None]) -> int:
    """Send every delivery of the outbox; return how many could not be sent."""
    left = 0
    for directory in sorted((store.root / "outbox").glob("[!.]*")):
        try:
            delivery = Delivery(directory, store)
            delivery.send(client)
        except Exception as error:  # as in Tracker
            left += 1
            warn(f"{directory.name}: not sent, {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        else:
            shutil.rmtree(directory)
    return left


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def main() -> None:
    """Send what waits in the outbox of the repository in the working directory."""
    store = Store.of(Path.cwd())
    waiting = len(list((store.root / "outbox").glob("[!.]*")))
    try:
        left = send_outbox(store.client(), store, lambda line: print(line, file=sys.stderr)) if waiting else 0
    except Exception as error:  # whatever a store or the way to it raises
        sys.exit(
            f"ERROR: MLflow ({store.shown}) does not answer: {' '.join(str(error).split())[:200]}; try again later"
        )
    print(f"{waiting - left} of {waiting} waiting runs sent to {store.shown}")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
