"""One run on its way to MLflow: a folder, so that it outlives the stage.

journal.jsonl      what happened
description.json   name, params, tags and inputs of the run, known at its start
delivery.json      the store, the run's id in it, and what it has acknowledged
status.json        how the run ended, with the last tags; missing while it runs
artifacts/         files to upload at the end
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from smollm.state.files import link_or_copy, read_json, write_json
from smollm.tracking.deadline import Deadline
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.run_record import Dataset, KeptCheckpoint, ModelVersion, RunDescription, RunEnd


class Delivery:
    """The folder of one run, and how much of it MLflow has acknowledged.

    Attributes:
        directory: the run's folder.
        store: where it goes.
        deadline: of the calls that send it.
        state: the contents of delivery.json.
    """

    def __init__(self, directory: Path, store: MlflowStore, deadline: Deadline | None = None) -> None:
        self.directory, self.store = directory, store
        self.deadline = deadline or Deadline()
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
    def delivery_id(self) -> str:
        delivery_id: str = read_json(self.directory / "description.json")["delivery_id"]
        return delivery_id

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to send."""
        return bool(self.state.get("done"))

    @property
    def is_in_outbox(self) -> bool:
        """Whether a copy of all of it waits in the outbox."""
        return bool(self.state.get("in_outbox"))

    @property
    def description(self) -> RunDescription:
        values = read_json(self.directory / "description.json")
        return RunDescription(**{**values, "datasets": [Dataset(**dataset) for dataset in values["datasets"]]})

    @property
    def run_end(self) -> RunEnd | None:
        """How the run ended; None while it runs."""
        values = read_json(self.directory / "status.json")
        if not values:
            return None
        version = values.pop("version", None)
        checkpoints = [KeptCheckpoint(**checkpoint) for checkpoint in values.pop("checkpoints", [])]
        return RunEnd(**values, version=ModelVersion(**version) if version else None, checkpoints=checkpoints)

    def begin(self, description: RunDescription) -> None:
        """Write down what the run is, and which store it goes to."""
        self.update()
        write_json(self.directory / "description.json", asdict(description))

    @property
    def has_begun(self) -> bool:
        return (self.directory / "description.json").exists()

    def reopen(self) -> None:
        """Continue a run that ended early."""
        (self.directory / "status.json").unlink(missing_ok=True)
        if self.run_id or self.is_in_outbox:
            self.update(done=False, in_outbox=False, reopen=True)

    def end(self, run_end: RunEnd, artifacts: dict[str, Path]) -> None:
        """Write down how the run ended, with the files to upload by their path in MLflow."""
        for name, path in artifacts.items():
            link_or_copy(path, self.directory / "artifacts" / name)
        write_json(self.directory / "status.json", asdict(run_end))

    def update(self, **values: object) -> None:
        """Remember what MLflow has acknowledged."""
        self.state |= values
        write_json(self._state_file, self.state)

    def forget(self) -> None:
        """Send all of it again: the store was emptied."""
        self.state = self._unsent
