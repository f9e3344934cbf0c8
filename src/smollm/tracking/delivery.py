"""One run on its way to MLflow: a folder of its own, so that it outlives the stage.

journal.jsonl      what happened
description.json   name, params, tags and inputs of the run, known at its start
delivery.json      the store, the run's id there, and what it has acknowledged
status.json        how the run ended, with the last tags; missing while it runs
artifacts/         files to upload at the end
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from smollm.state.files import link_or_copy, write_json
from smollm.state.journal import EVENT, HARDWARE, Record, read
from smollm.tracking.run_record import Dataset, Description, Ending, Version
from smollm.tracking.store import Deadline, Store, refuses

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS = {
    ("step", "train_loss"): "train/loss",
    ("step", "gradient_norm"): "train/gradient_norm",
    ("step", "learning_rate"): "train/learning_rate",
    ("skip", "total"): "train/skipped_steps",
    ("validation", "loss"): "validation/loss",
    ("validation", "bits_per_byte"): "validation/bits_per_byte",
    ("validation", "best_bits_per_byte"): "validation/best_bits_per_byte",
    ("validation", "pretrain_bits_per_byte"): "validation/pretrain_bits_per_byte",
    ("speed", "tokens_per_second"): "speed/tokens_per_second",
    ("speed", "step_ms"): "speed/step_ms",
    ("speed", "mfu"): "speed/mfu",
    ("speed", "goodput"): "speed/goodput",
    ("speed", "peak_memory_gib"): "memory/peak_gib",
    ("ranks", "slowest_rank"): "ranks/slowest_rank",
    ("ranks", "slowest_tokens_per_second"): "ranks/slowest_tokens_per_second",
    ("ranks", "fastest_tokens_per_second"): "ranks/fastest_tokens_per_second",
    ("ranks", "least_memory_gib"): "ranks/least_memory_gib",
    ("ranks", "most_memory_gib"): "ranks/most_memory_gib",
}
"""MLflow's name for each number of the journal; a `result` brings names of its own."""

_BATCH = 900  # MLflow takes at most 1000 metrics a call
_PARAMS_BATCH = 100
_MARK = "smollm.delivery"


class Dropped(Exception):
    """A run has ended of which MLflow will never take the rest; the message says why."""


class Delivery:
    """One run on its way to MLflow."""

    def __init__(self, directory: Path, store: Store, deadline: Deadline | None = None) -> None:
        self.directory, self.store = directory, store
        self._deadline = deadline or Deadline()
        self._state_file = directory / "delivery.json"
        state = read_json(self._state_file)
        self.state: dict[str, Any] = state if state.get("store_shown") == store.shown else self._unsent

    @property
    def _unsent(self) -> dict[str, Any]:
        """The state of a run that MLflow knows nothing of."""
        return {"store_shown": self.store.shown, "offset": 0}

    @property
    def run_id(self) -> str | None:
        run_id: str | None = self.state.get("run_id")
        return run_id

    @property
    def page(self) -> str | None:
        """Where a browser shows the run."""
        return self.store.page(self.state["experiment_id"], self.state["run_id"])

    @property
    def mark(self) -> str:
        mark: str = read_json(self.directory / "description.json")["mark"]
        return mark

    @property
    def is_done(self) -> bool:
        return bool(self.state.get("done"))

    def send(self, client: "MlflowClient") -> None:
        """Send all that MLflow has not acknowledged.

        Raises:
            Dropped: MLflow will not take the rest; the delivery is done.
            Exception: what MLflow raises, or TimeoutError; the rest can be sent later.
        """
        if self.is_done:
            return
        try:
            self._send(client)
        except Exception as error:
            if self.run_id is None or not refuses(error):
                raise
            stage = _lifecycle(client, self.run_id)
            if stage == "active":
                raise
            if stage == "deleted":
                self._drop("the run was deleted there; nothing more of it is sent", error)
            self.state = self._unsent  # the store was emptied
            self._send(client)

    def _send(self, client: "MlflowClient") -> None:
        run_id = self.run_id or self._create_run(client)
        if not self.state.get("described"):
            self._describe(client, run_id)
        self._send_journal(client, run_id)
        ending = read_json(self.directory / "status.json")
        if ending:
            version = ending.pop("version", None)
            self._finish(client, run_id, Ending(**ending, version=Version(**version) if version else None))

    @property
    def is_aside(self) -> bool:
        """Whether a copy of all of it waits in the outbox."""
        return bool(self.state.get("aside"))

    def note_aside(self) -> None:
        self._note(aside=True)

    def begin(self, description: Description) -> None:
        """Note what the run is, and which store it is for."""
        self._note()
        write_json(self.directory / "description.json", asdict(description))

    def reopen(self) -> None:
        """Go on with a run that ended early."""
        (self.directory / "status.json").unlink(missing_ok=True)
        if self.run_id or self.is_aside:
            self._note(done=False, aside=False, reopen=True)

    def end(self, ending: Ending, artifacts: dict[str, Path]) -> None:
        """Note how the run ended, with the files to upload, by their path in MLflow."""
        for name, path in artifacts.items():
            link_or_copy(path, self.directory / "artifacts" / name)
        write_json(self.directory / "status.json", asdict(ending))

    def _drop(self, why: str, error: Exception) -> NoReturn:
        self._note(done=True)
        raise Dropped(why) from error

    def _note(self, **values: object) -> None:
        self.state |= values
        write_json(self._state_file, self.state)

    def _description(self) -> Description:
        values = read_json(self.directory / "description.json")
        return Description(**{**values, "datasets": [Dataset(**one) for one in values["datasets"]]})

    def _create_run(self, client: "MlflowClient") -> str:
        description = self._description()
        experiment = self.store.experiment_id(client, description.experiment)
        # a kill between MLflow's answer and our note of it must not leave a second run
        known = _find(client, experiment, description.mark)
        if not known:
            tags = {
                _MARK: description.mark,
                "mlflow.user": description.user,
                "mlflow.source.type": "JOB",
                **self._parent_tag(client, experiment, description),
                **description.tags,
            }
            started = int(description.started * 1000)
            client.create_run(experiment, started, tags, description.run_name)
            known = _find(client, experiment, description.mark)
        run_id, *repeated = known
        self._note(run_id=run_id, experiment=description.experiment, experiment_id=experiment)
        for one in repeated:  # MLflow's client creates again by itself where an answer was lost
            client.delete_run(one)
        return run_id

    @staticmethod
    def _parent_tag(client: "MlflowClient", experiment: str, description: Description) -> dict[str, str]:
        parent = description.parent_run_id
        if parent is None and description.parent_mark is not None:
            parent = next(iter(_find(client, experiment, description.parent_mark)), None)
        if parent is None:
            return {}
        if _lifecycle(client, parent) is None:
            return {"smollm.parent_in_another_store": parent}
        return {"mlflow.parentRunId": parent}

    def _describe(self, client: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag, Param

        description = self._description()
        params = [Param(name, value[:6000]) for name, value in description.params.items()]
        for start in range(0, len(params), _PARAMS_BATCH):
            self._deadline.check()
            client.log_batch(run_id, params=params[start : start + _PARAMS_BATCH])
        inputs = [
            DatasetInput(
                Entity(one.name, one.digest, "local", json.dumps({"uri": one.path}), profile=json.dumps(one.profile)),
                [InputTag("mlflow.data.context", one.context)],
            )
            for one in description.datasets
        ]
        if inputs:
            self._deadline.check()
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
            if record.kind == HARDWARE:
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
        self._deadline.check()
        if batch or tags:
            client.log_batch(run_id, metrics=batch, tags=tags)
        for record in samples:
            self._deadline.check()
            texts = zip(record.values["prompts"], record.values["texts"], strict=True)
            text = "\n\n----\n\n".join(prompt + text for prompt, text in texts)
            client.log_text(run_id, text + "\n", f"samples/step-{record.step:08d}.txt")
        if samples:
            self._send_sample_table(client, run_id)
        self._note(offset=offset)

    def _send_sample_table(self, client: "MlflowClient", run_id: str) -> None:
        """Write all samples as the table that MLflow compares across runs.

        Its page groups rows by the first column and compares the second, until told otherwise.
        `log_table` would append to what is there, and so repeat rows that are sent twice.
        """
        rows = [
            [f"step {record.step}: {prompt}", text, record.step, prompt]
            for record, _ in read(self.directory / "journal.jsonl")
            if record.kind == "sample"
            for prompt, text in zip(record.values["prompts"], record.values["texts"], strict=True)
        ]
        self._deadline.check()
        client.log_dict(run_id, {"columns": ["sample", "text", "step", "prompt"], "data": rows}, "samples.json")
        if not self.state.get("table"):
            client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": "samples.json", "type": "table"}]))
            self._note(table=True)

    def _finish(self, client: "MlflowClient", run_id: str, ending: Ending) -> None:
        from mlflow.entities import RunTag

        artifacts = self.directory / "artifacts"
        for file in sorted(path for path in artifacts.rglob("*") if path.is_file()):
            self._deadline.check()
            folder = file.parent.relative_to(artifacts)
            client.log_artifact(run_id, str(file), None if folder == Path() else folder.as_posix())
        self._deadline.check()
        client.log_batch(run_id, tags=[RunTag(name, value[:5000]) for name, value in ending.tags.items()])
        self._deadline.check()
        client.set_terminated(run_id, ending.status, int(ending.ended * 1000))
        if ending.version is not None:
            try:
                self._register(client, run_id, ending.version)
            except Exception as error:
                if not refuses(error):
                    raise
                name = ending.version.model
                self._drop(f"the run is there, but no version of the model {name!r}: {self.store.reason(error)}", error)
        self._note(done=True)

    def _register(self, client: "MlflowClient", run_id: str, version: Version) -> None:
        """Add a version to the registry, unless the run has one."""
        from mlflow.exceptions import MlflowException

        self._deadline.check()
        try:
            client.create_registered_model(version.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._deadline.check()
        if not client.search_model_versions(f"name = '{version.model}' and run_id = '{run_id}'"):
            source = f"runs:/{run_id}/{version.source}"
            client.create_model_version(
                version.model, source, run_id, tags=version.tags, description=version.description
            )


def _find(client: "MlflowClient", experiment: str, mark: str) -> list[str]:
    """The ids of the runs with this mark."""
    return [str(run.info.run_id) for run in client.search_runs([experiment], f"tags.`{_MARK}` = '{mark}'")]


def _lifecycle(client: "MlflowClient", run_id: str) -> str | None:
    """active, or deleted by a user; None where the store does not know the run."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


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


def read_json(path: Path) -> dict[str, Any]:
    """The values in a JSON file; none where there is no file."""
    if not path.exists():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
