"""Sends a running stage's journal to MLflow, from a thread of its own."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from smollm.config.tracking import TrackingConfig
from smollm.tracking import outbox
from smollm.tracking.deadline import Deadline
from smollm.tracking.delivery import Delivery
from smollm.tracking.mlflow_store import MlflowStore, refuses
from smollm.tracking.run_record import RunDescription, RunEnd
from smollm.tracking.stop_tag import StopTag
from smollm.tracking.system_metrics import SystemMetrics
from smollm.tracking.upload import Dropped, upload

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Tracker:
    """Sends a running stage's journal to MLflow, from a thread of its own.

    That thread alone calls MLflow. A call that never returns holds up nothing: at the deadline the stage continues
    without the thread, and what MLflow lacks is put into the outbox.
    """

    def __init__(
        self,
        directory: Path,
        store: MlflowStore,
        settings: TrackingConfig,
        say: Callable[[str], None],
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            directory: the stage's live state, with its journal.
            store: where the run goes.
            settings: of MLflow.
            say: prints a line for the user.
            on_stop: called from the tracker's thread when a user stops the run in MLflow.
        """
        self.store, self._settings, self._say = store, settings, say
        self._deadline = Deadline()
        self.delivery = Delivery(directory, store, self._deadline)
        self._system_metrics = SystemMetrics(settings.system_metrics_every_seconds)
        self._stop_tag = StopTag(on_stop)
        self._requests: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
        self._is_flushing = False
        self._thread = threading.Thread(target=self._send_until_flushed, name="tracking", daemon=True)
        self._client: MlflowClient | None = None
        self._has_withdrawn = self._has_sent_outbox = False
        self.has_warned = False
        """Whether MLflow did not answer, or refused the run."""

    def start(self, description: RunDescription) -> None:
        """Begin or continue the run; returns at once."""
        if self.delivery.has_begun:
            self.delivery.reopen()
        else:
            self.delivery.begin(description)
        self._thread.start()

    def flush(self) -> None:
        """Stop measuring the system, and send what is left, if MLflow answers within `finish_seconds`."""
        self._is_flushing = True
        self._deadline.limit(self._settings.finish_seconds)
        is_sent = threading.Event()
        self._requests.put(is_sent)
        with self._deadline.waiting() as seconds:
            if not is_sent.wait(seconds):
                limit = self._settings.finish_seconds
                self._warn(TimeoutError(f"no answer within tracking.finish_seconds ({limit:g})"))

    def end(self, run_end: RunEnd, artifacts: dict[str, Path]) -> None:
        """End the run; where MLflow does not answer in what is left of `finish_seconds`, leave it in the outbox."""
        self.flush()
        try:
            self.delivery.end(run_end, artifacts)
            self.flush()
            if not self.delivery.is_done:
                outbox.add(self.delivery)
                self._say(f"MLflow ({self.store.shown}) is missing part of this run; `make sync` sends it later")
            elif self.delivery.page:
                self._say(f"MLflow: {self.delivery.page}")
        except OSError as error:  # such as a full disk; the stage has done its work and must not fail
            self._say(
                f"MLflow ({self.store.shown}) is missing part of this run, which cannot be put into the outbox: {error}"
            )
        self._requests.put(None)

    def _send_until_flushed(self) -> None:
        """Send every `send_every_seconds` until the first request; from then on once per request, until None."""
        self._attempt()
        while True:
            try:
                is_sent = self._requests.get(timeout=None if self._is_flushing else self._settings.send_every_seconds)
            except queue.Empty:
                self._attempt()
                continue
            if is_sent is None:
                return
            self._attempt()
            is_sent.set()

    def _attempt(self) -> None:
        """Send what MLflow lacks; training continues whatever the store raises."""
        try:
            self._send()
        except Dropped as error:
            self._say(f"MLflow ({self.store.shown}): {error}")
        except Exception as error:
            self._warn(error)

    def _send(self) -> None:
        if self._is_flushing:
            self._system_metrics.stop()
        self._deadline.check()  # a thread that was left behind must not remove what was put into the outbox since
        if not self._has_withdrawn:
            outbox.withdraw(self.delivery, self._deadline)  # an older copy must not end the run that continues
            self._has_withdrawn = True
        if self._client is None:
            self._client = self.store.client()
        if not self._has_sent_outbox:
            self._has_sent_outbox = True
            outbox.send(self._client, self.store, self._say, self._deadline)  # the parent of this run may be in it
        upload(self.delivery, self._client)
        if self.delivery.run_id and not self._is_flushing and not self.delivery.is_done:
            self._system_metrics.ensure_running(self.delivery.run_id)
            self._stop_tag.check(self._client, self.delivery.run_id)

    def _warn(self, error: Exception) -> None:
        if not self.has_warned:
            self.has_warned = True
            verb = "refuses" if refuses(error) else "does not answer"
            self._say(f"MLflow ({self.store.shown}) {verb}; continuing without it. {self.store.reason(error)}")
