"""MLflow's measurements of what the stage uses; stand-ins for NVML's and torch's answers make the GPUs."""

import re
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pynvml
import pytest
import torch

from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

MEGABYTES = {"GPU-aa": 100.0, "GPU-bb": 200.0, "GPU-cc": 300.0}
"""Memory in use on each GPU of the machine, in NVML's order."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of three GPUs."""
    names = list(MEGABYTES)
    stand_ins = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(names),
        "nvmlDeviceGetHandleByIndex": lambda index: names[index],
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=MEGABYTES[handle] * 1e6, total=1e9),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=50),
        "nvmlDeviceGetPowerUsage": lambda handle: 1000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 2000,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(pynvml, name, stand_in)


def use(monkeypatch: pytest.MonkeyPatch, visible: list[str], processes: int) -> None:
    """Have torch see these GPUs, and so many processes on the machine train."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(visible))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=visible[index]))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))


def measured(client: "MlflowClient", store: MlflowStore) -> dict[str, float]:
    """The memory in use on each GPU that MLflow is told of, by its index."""
    run_id = client.create_run(store.experiment_id(client, "smollm")).info.run_id
    metrics = SystemMetrics(0.02)
    deadline = time.monotonic() + 60
    count = 0
    while count < 3:  # the first measurement may be from before a GPU was in use
        assert time.monotonic() < deadline
        metrics.ensure_running(run_id)
        count = len(client.get_metric_history(run_id, "system/cpu_utilization_percentage"))
        time.sleep(0.02)
    metrics.stop()
    found = client.get_run(run_id).data.metrics
    pattern = re.compile(r"system/(gpu_\d)_memory_usage_megabytes")
    return {match[1]: value for name, value in found.items() if (match := pattern.fullmatch(name))}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("visible", "processes", "expected"),
    [
        (["aa", "bb", "cc"], 3, {"gpu_0": 100.0, "gpu_1": 200.0, "gpu_2": 300.0}),
        (["aa", "bb", "cc"], 1, {"gpu_0": 100.0}),  # the others are somebody else's
        (["cc", "aa"], 2, {"gpu_0": 300.0, "gpu_1": 100.0}),  # as CUDA_VISIBLE_DEVICES orders them
        ([], 1, {}),  # a stage that trains on the CPU
    ],
)
def test_the_gpus_that_the_stage_uses_are_measured_and_no_others(
    client: "MlflowClient",
    store: MlflowStore,
    monkeypatch: pytest.MonkeyPatch,
    visible: list[str],
    processes: int,
    expected: dict[str, float],
) -> None:
    use(monkeypatch, visible, processes)
    assert measured(client, store) == expected
