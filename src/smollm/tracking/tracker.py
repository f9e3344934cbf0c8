"""Sends a running stage's journal from a thread of its own."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm.config.tracking import TrackingConfig
from smollm.tracking import outbox
from smollm.tracking.delivery import Delivery, Dropped
from smollm.tracking.run_record import Description, Ending
from smollm.tracking.store import Deadline, Store, refuses

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Tracker:
    """Sends a running stage's journal from a thread of its own."""

    def __init__(self, directory: Path, store: Store, settings: TrackingConfig, say: Callable[[str], None]) -> None:
        self._deadline = Deadline()
        self.delivery = Delivery(directory, store, self._deadline)
        self.store, self._say = store, say
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._client: MlflowClient | None = None
        self._monitor: Any = None
        self._warned = False

    def start(self, description: Description) -> None:
        """Begin or go on with the run; returns at once."""
        if (self.delivery.directory / "description.json").exists():
            self.delivery.reopen()
        else:
            self.delivery.begin(description)
        self._thread.start()

    def drain(self) -> None:
        """Stop the thread and send what is left, if MLflow answers in time."""
        self._deadline.limit(self._settings.finish_seconds)
        self._stop.set()
        with self._deadline.waiting():
            self._thread.join()
            if self._monitor is not None:
                self._monitor.finish()
                self._monitor = None
            self._try()

    def end(self, ending: Ending, artifacts: dict[str, Path]) -> None:
        """End the run; where MLflow does not answer, leave all of it in the outbox."""
        self.drain()
        try:
            self.delivery.end(ending, artifacts)
            with self._deadline.waiting():
                self._try()
            if self.delivery.is_done and self.delivery.page:
                self._say(f"MLflow: {self.delivery.page}")
            if not self.delivery.is_done:
                outbox.put_aside(self.delivery)
                self._say(f"MLflow ({self.store.shown}) lacks part of this run; `make sync` sends it later")
        except OSError as error:  # a full disk, say, is no reason for a stage to fail that has done its work
            self._say(f"MLflow ({self.store.shown}) lacks part of this run, and the outbox does not take it: {error}")

    def _work(self) -> None:
        try:
            outbox.withdraw(self.delivery, self._deadline)
            outbox.send(self._client_of_store(), self.store, self._say, self._deadline)  # a parent may be among them
        except Exception:  # as in _try, which says so
            self._client = None
        self._try()
        while not self._stop.wait(self._settings.send_every_seconds):
            self._try()

    def _try(self) -> None:
        try:
            outbox.withdraw(self.delivery, self._deadline)  # what waits there is older than what goes on here
            self.delivery.send(self._client_of_store())
            if not (self._is_measuring or self._stop.is_set() or self.delivery.is_done):
                self._monitor = self._start_monitor()
        except Dropped as error:
            self._say(f"MLflow ({self.store.shown}): {error}")
        except Exception as error:  # whatever a store or the way to it raises, training goes on
            if not self._warned:
                self._warned = True
                verb = "refuses" if refuses(error) else "does not answer"
                self._say(f"MLflow ({self.store.shown}) {verb}; training goes on. {self.store.reason(error)}")

    def _client_of_store(self) -> "MlflowClient":
        if self._client is None:
            self._client = self.store.client()
        return self._client

    @property
    def _is_measuring(self) -> bool:
        """MLflow's loop of measuring ends for good with the first answer that it does not get."""
        return self._monitor is not None and self._monitor._process.is_alive()

    def _start_monitor(self) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        interval = self._settings.system_metrics_every_seconds
        monitor = SystemMetricsMonitor(self.delivery.run_id, sampling_interval=interval, resume_logging=True)
        monitor.start()
        return monitor
