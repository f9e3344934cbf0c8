"""CPU, memory, disk, network and GPU use of the machine, measured and sent by MLflow's own monitor."""

import logging
from typing import Any


class SystemMetrics:
    """MLflow's monitor for one run."""

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: between measurements.
        """
        self._seconds = seconds
        self._monitor: Any = None

    def ensure_running(self, run_id: str) -> None:
        """Start the monitor unless it runs: its thread ends with the first call that fails."""
        if self._monitor is not None and self._monitor._process.is_alive():
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # the run's sender warns, once
        self._monitor = SystemMetricsMonitor(run_id, sampling_interval=self._seconds, resume_logging=True)
        self._monitor.start()

    def stop(self) -> None:
        """Send the last measurements and end the monitor; waits for its thread."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
