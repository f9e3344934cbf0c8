"""Sends what MLflow lacks of one delivery; sending the same again changes nothing."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from smollm.state.journal import Kind, Record, read
from smollm.tracking.delivery import Delivery
from smollm.tracking.logged_models import log_checkpoints
from smollm.tracking.metric_names import metrics
from smollm.tracking.mlflow_store import refuses
from smollm.tracking.registry import register
from smollm.tracking.run_record import RunDescription, RunEnd
from smollm.tracking.stop_tag import STOP

if TYPE_CHECKING:
    from mlflow import MlflowClient

_METRICS_BATCH = 900  # MLflow takes at most 1000 metrics a call
_PARAMS_BATCH = 100
_PARAM_CHARACTERS, _TAG_CHARACTERS = 6000, 5000
_DELIVERY_ID = "smollm.delivery"
_PARENT_DELIVERY_ID = "smollm.parent_delivery"
"""Tag of a run whose parent MLflow has not got yet."""


class Dropped(Exception):
    """MLflow will never take the rest of a run that has ended; the message says why."""


def upload(delivery: Delivery, client: "MlflowClient") -> None:
    """Send all that MLflow has not acknowledged.

    Raises:
        Dropped: MLflow will not take the rest; the delivery is done.
        Exception: what MLflow raises, or TimeoutError; the rest can be sent later.
    """
    if delivery.is_done:
        return
    try:
        _Upload(delivery, client).run()
    except Exception as error:
        if delivery.run_id is None or not refuses(error):
            raise
        stage = _lifecycle(client, delivery.run_id)
        if stage == "active":
            raise
        if stage == "deleted":
            _drop(delivery, "the run was deleted there; nothing more of it is sent", error)
        delivery.forget()
        _Upload(delivery, client).run()


class _Upload:
    """One attempt to send a delivery."""

    def __init__(self, delivery: Delivery, client: "MlflowClient") -> None:
        self.delivery, self.client = delivery, client

    def run(self) -> None:
        self._run_id = self.delivery.run_id or self._create_run()
        if not self.delivery.state.get("described"):
            self._describe()
        if self.delivery.state.get("reopen"):
            self._reopen()
        self._send_journal()
        if run_end := self.delivery.run_end:
            self._finish(run_end)

    def _create_run(self) -> str:
        description = self.delivery.description
        experiment = self.delivery.store.experiment_id(self.client, description.experiment)
        # after a kill between MLflow's answer and our record of it, the run exists already
        run_ids = _find(self.client, experiment, description.delivery_id)
        if not run_ids:
            tags = {
                _DELIVERY_ID: description.delivery_id,
                "mlflow.user": description.user,
                "mlflow.source.type": "JOB",
                **self._parent_tag(experiment, description),
                **description.tags,
            }
            self.client.create_run(experiment, int(description.started * 1000), tags, description.run_name)
            run_ids = _find(self.client, experiment, description.delivery_id)
        run_id, *repeated = run_ids
        for child in _find(self.client, experiment, description.delivery_id, _PARENT_DELIVERY_ID):
            self.client.set_tag(child, "mlflow.parentRunId", run_id)
            self.client.delete_tag(child, _PARENT_DELIVERY_ID)
        self.delivery.update(run_id=run_id, experiment=description.experiment, experiment_id=experiment)
        for duplicate in repeated:  # MLflow's client repeats the call if an answer is lost
            self.client.delete_run(duplicate)
        return run_id

    def _parent_tag(self, experiment: str, description: RunDescription) -> dict[str, str]:
        parent = description.parent_run_id
        if parent is None and description.parent_delivery_id is not None:
            parent = next(iter(_find(self.client, experiment, description.parent_delivery_id)), None)
        if parent is None:
            asked = description.parent_delivery_id
            return {} if asked is None else {_PARENT_DELIVERY_ID: asked}
        if _lifecycle(self.client, parent) is None:
            return {"smollm.parent_in_another_store": parent}
        return {"mlflow.parentRunId": parent}

    def _describe(self) -> None:
        """Send params and datasets."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag, Param

        description = self.delivery.description
        params = [Param(name, value[:_PARAM_CHARACTERS]) for name, value in description.params.items()]
        for start in range(0, len(params), _PARAMS_BATCH):
            self.delivery.deadline.check()
            self.client.log_batch(self._run_id, params=params[start : start + _PARAMS_BATCH])
        inputs = []
        for dataset in description.datasets:
            source, profile = json.dumps({"uri": dataset.path}), json.dumps(dataset.profile)
            entity = Entity(dataset.name, dataset.digest, "local", source, profile=profile)
            inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", dataset.context)]))
        if inputs:
            self.delivery.deadline.check()
            self.client.log_inputs(self._run_id, inputs)
        self.delivery.update(described=True)

    def _reopen(self) -> None:
        """Set a run that ended, and continues, to running."""
        self.client.update_run(self._run_id, status="RUNNING")
        tags = self.client.get_run(self._run_id).data.tags
        for outdated in {"error", STOP} & tags.keys():
            self.client.delete_tag(self._run_id, outdated)
        self.delivery.update(reopen=False)

    def _send_journal(self) -> None:
        from mlflow.entities import Metric, RunTag

        batch: list[Metric] = []
        tags: list[RunTag] = []
        samples: list[Record] = []
        start = offset = self.delivery.state["offset"]
        for record, after in read(self.delivery.directory / "journal.jsonl", start):
            offset = after
            batch += [Metric(name, value, int(record.time * 1000), record.step) for name, value in metrics(record)]
            if record.kind == Kind.HARDWARE:
                tags += [RunTag(f"hardware.{name}", str(value)) for name, value in record.values.items()]
            if record.kind == Kind.SAMPLE:
                samples.append(record)
            if len(batch) >= _METRICS_BATCH:
                self._send_batch(batch, tags, samples, offset)
                batch, tags, samples = [], [], []
        if offset > start:
            self._send_batch(batch, tags, samples, offset)

    def _send_batch(self, batch: list[Any], tags: list[Any], samples: list[Record], offset: int) -> None:
        self.delivery.deadline.check()
        if batch or tags:
            self.client.log_batch(self._run_id, metrics=batch, tags=tags)
        for record in samples:
            self.delivery.deadline.check()
            texts = zip(record.values["prompts"], record.values["texts"], strict=True)
            text = "\n\n----\n\n".join(prompt + text for prompt, text in texts)
            self.client.log_text(self._run_id, text + "\n", f"samples/step-{record.step:08d}.txt")
        if samples:
            self._send_sample_table()
        self.delivery.update(offset=offset)

    def _send_sample_table(self) -> None:
        """Write all samples as the table that MLflow compares across runs.

        Its page groups rows by the first column and compares the second by default.
        `log_table` would append, and so repeat rows that are sent twice.
        """
        rows = [
            [f"step {record.step}: {prompt}", text, record.step, prompt]
            for record, _ in read(self.delivery.directory / "journal.jsonl")
            if record.kind == Kind.SAMPLE
            for prompt, text in zip(record.values["prompts"], record.values["texts"], strict=True)
        ]
        self.delivery.deadline.check()
        table = {"columns": ["sample", "text", "step", "prompt"], "data": rows}
        self.client.log_dict(self._run_id, table, "samples.json")
        if not self.delivery.state.get("table"):
            artifacts = json.dumps([{"path": "samples.json", "type": "table"}])
            self.client.set_tag(self._run_id, "mlflow.loggedArtifacts", artifacts)
            self.delivery.update(table=True)

    def _finish(self, run_end: RunEnd) -> None:
        from mlflow.entities import RunTag

        deadline, artifacts = self.delivery.deadline, self.delivery.directory / "artifacts"
        for file in sorted(path for path in artifacts.rglob("*") if path.is_file()):
            deadline.check()
            folder = file.parent.relative_to(artifacts)
            self.client.log_artifact(self._run_id, str(file), None if folder == Path() else folder.as_posix())
        deadline.check()
        tags = [RunTag(name, value[:_TAG_CHARACTERS]) for name, value in run_end.tags.items()]
        self.client.log_batch(self._run_id, tags=tags)
        exported = log_checkpoints(self.client, self.delivery, self._run_id, run_end.checkpoints)
        deadline.check()
        self.client.set_terminated(self._run_id, run_end.status, int(run_end.ended * 1000))
        if run_end.version is not None:
            try:
                register(self.client, self._run_id, run_end.version, exported, deadline)
            except Exception as error:
                if not refuses(error):
                    raise
                reason = self.delivery.store.reason(error)
                why = f"the run is there, but no version of the model {run_end.version.model!r}: {reason}"
                _drop(self.delivery, why, error)
        self.delivery.update(done=True)


def _drop(delivery: Delivery, why: str, error: Exception) -> NoReturn:
    delivery.update(done=True)
    raise Dropped(why) from error


def _find(client: "MlflowClient", experiment: str, delivery_id: str, tag: str = _DELIVERY_ID) -> list[str]:
    """The ids of the runs whose `tag` is this delivery id."""
    return [str(run.info.run_id) for run in client.search_runs([experiment], f"tags.`{tag}` = '{delivery_id}'")]


def _lifecycle(client: "MlflowClient", run_id: str) -> str | None:
    """active, or deleted by a user; None where the store does not know the run."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
