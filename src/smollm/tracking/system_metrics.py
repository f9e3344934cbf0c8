"""CPU, memory, disk and network of the machine, and the GPUs that the stage uses, measured by MLflow's own monitor."""

import logging
import os
import sys
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
        self._gpus: _UsedGPUs | None = None

    def ensure_running(self, run_id: str) -> None:
        """Start the monitor unless it runs: its thread ends with the first call that fails."""
        if self._monitor is None or not self._monitor._process.is_alive():
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # the run's sender warns, once
            self._monitor = SystemMetricsMonitor(run_id, sampling_interval=self._seconds, resume_logging=True)
            self._gpus = _UsedGPUs.of(self._monitor)
            self._monitor.start()
        if self._gpus is not None:
            self._gpus.find()

    def stop(self) -> None:
        """Send the last measurements and end the monitor; waits for its thread."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


class _UsedGPUs:
    """Restricts MLflow's monitor, which measures all GPUs of the machine, to those that the stage uses."""

    def __init__(self, gpu_monitor: Any) -> None:
        self._gpu_monitor = gpu_monitor
        self._of_the_machine = gpu_monitor.gpu_handles
        gpu_monitor.gpu_handles = []  # until torch has some

    @classmethod
    def of(cls, monitor: Any) -> "_UsedGPUs | None":
        """Those of a monitor that measures NVIDIA GPUs; None on a machine without."""
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        return next((cls(part) for part in monitor.monitors if isinstance(part, GPUMonitor)), None)

    def find(self) -> None:
        """Have the GPUs measured, in torch's order, once torch uses some."""
        torch = sys.modules.get("torch")  # without which a stage uses no GPU
        if self._gpu_monitor.gpu_handles or torch is None or not torch.cuda.is_initialized():
            return
        import pynvml

        # each process on this machine has the GPU of its local rank
        count = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
        # CUDA_VISIBLE_DEVICES may hide GPUs, by index or UUID, and CUDA's order is not NVML's
        uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]
        there = {pynvml.nvmlDeviceGetUUID(handle): handle for handle in self._of_the_machine}
        self._gpu_monitor.gpu_handles = [
            handle for uuid in uuids for name, handle in there.items() if name.endswith(uuid)
        ]
