"""Stops a stage from its page in MLflow, where a user sets the tag ``stop`` of its run to ``true``."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from smollm.tracking.mlflow_store import refuses

if TYPE_CHECKING:
    from mlflow import MlflowClient

STOP = "stop"
"""Name of the tag."""

_SENDS_PER_CHECK = 3
"""Sends per check of the tag: a check costs as much as a send."""


class StopTag:
    """Watches the tag of one run."""

    def __init__(self, on_stop: Callable[[], None]) -> None:
        """
        Args:
            on_stop: called when the tag is set.
        """
        self._on_stop = on_stop
        self._sends = 0

    def check(self, client: "MlflowClient", run_id: str) -> None:
        """Check for the tag, once in a few calls; when it is set, pass that on, and remove it: it has had its effect.

        Raises:
            Exception: what MLflow raises.
        """
        self._sends += 1
        if self._sends % _SENDS_PER_CHECK:
            return
        try:
            tags = client.get_run(run_id).data.tags
        except Exception as error:
            if refuses(error):  # the store was emptied, and will get the run again
                return
            raise
        if tags.get(STOP, "").strip().lower() == "true":
            self._on_stop()
            client.delete_tag(run_id, STOP)
