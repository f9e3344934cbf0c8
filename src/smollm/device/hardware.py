"""Device, precision and compilation: chosen automatically, or as `runtime` says."""

import math
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import psutil
import torch

from smollm.config.fields import Auto
from smollm.config.runtime import DeviceKind, Precision, RuntimeConfig
from smollm.errors import TrainingError

_WORTH_COMPILING = 1000
"""Steps on a CPU after which compiling has paid for itself: 20 s of it for 0.02 s a step of the tiny preset."""

_HALF_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}

_REFUSED = {"cpu": (Precision.FP16, Precision.TF32), "mps": (Precision.TF32,)}
"""Precisions that a kind of device does not compute in."""


@dataclass(frozen=True)
class Hardware:
    """What a stage runs on."""

    device: torch.device
    precision: Precision
    compile: bool
    name: str

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return _HALF_DTYPES.get(self.precision, torch.float32)

    @property
    def captures(self) -> bool:
        """Whether repeated work is captured as a CUDA graph, so that the GPU need not wait for Python to launch it."""
        return self.compile and self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products and attention in `dtype`; weights and sums stay in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.precision in _HALF_DTYPES)

    def synchronize(self) -> None:
        """Wait until the device has finished its queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def product_rate(self) -> float:
        """FLOP/s of a large matrix product in `dtype`: the best of a few."""
        size = 2048 if self.device.type == "cpu" else 4096
        matrix = torch.randn(size, size, device=self.device, dtype=self.dtype)
        best = math.inf
        for _ in range(8):
            self.synchronize()
            began = time.perf_counter()
            matrix @ matrix
            self.synchronize()
            best = min(best, time.perf_counter() - began)
        return 2 * size**3 / best

    def peak_memory_gib(self) -> float:
        """The most memory used so far, in GiB: of the GPU, or of the process."""
        if self.device.type == "cuda":
            used = torch.cuda.max_memory_allocated()
        elif self.device.type == "mps":
            used = torch.mps.driver_allocated_memory()
        else:
            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            used = kilobytes * (1 if sys.platform == "darwin" else 1024)
        return float(used) / 2**30

    def reset_peak_memory(self) -> None:
        """Restart `peak_memory_gib`, where the device can, so that failed attempts do not count."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def reserve(self, values: int) -> torch.Tensor | None:
        """Take a GPU's memory for `values` float32 values until the result is dropped; None on another device."""
        return torch.empty(values, device=self.device) if self.device.type == "cuda" else None

    def attention_kernel(self, query_heads: int, key_value_heads: int, head_dim: int, length: int) -> str:
        """Which kernel `scaled_dot_product_attention` chooses for these shapes."""
        if self.device.type != "cuda":
            return f"{self.device.type} default"
        query = torch.empty(1, query_heads, length, head_dim, dtype=self.dtype, device=self.device)
        key = torch.empty(1, key_value_heads, length, head_dim, dtype=self.dtype, device=self.device)
        choice = torch._fused_sdp_choice(query, key, key, is_causal=True, enable_gqa=query_heads != key_value_heads)
        names = {0: "math", 1: "flash attention", 2: "memory-efficient", 3: "cuDNN"}
        return names.get(int(choice), "unknown")


def seconds_since_start() -> float:
    """Seconds since this process started, imports included."""
    return time.time() - psutil.Process().create_time()


def choose(runtime: RuntimeConfig, steps: int | None = None) -> Hardware:
    """Resolve `runtime` on this machine; products that stay in float32 use TF32, unless the precision is fp32.

    Args:
        runtime: what is wanted.
        steps: how many will be taken, where the choice may depend on it: few are not compiled on a CPU.

    Raises:
        TrainingError: it asks for a device or precision that is not there.
    """
    device = _choose_device(runtime.device)
    precision = _choose_precision(runtime.precision, device)
    torch.set_float32_matmul_precision("highest" if precision is Precision.FP32 else "high")
    is_short = steps is not None and steps < _WORTH_COMPILING
    compiles = device.type == "cuda" or (device.type == "cpu" and not is_short and _compiler_exists())
    compiled = compiles if isinstance(runtime.compile, Auto) else runtime.compile
    cpu_name = str(_cpu_capabilities().get("cpu_name", platform.machine()))
    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name
    return Hardware(device, precision, compiled, name)


def count_processes(runtime: RuntimeConfig, sequences: int) -> int:
    """How many processes to start on this machine: as `runtime` says, or one per GPU, if they divide `sequences`.

    Raises:
        TrainingError: if more are wanted than there are GPUs.
    """
    is_gpu = takes_gpus(runtime)
    gpus = torch.cuda.device_count() if is_gpu else 0
    if isinstance(runtime.processes, Auto):
        return max(n for n in range(1, max(1, gpus) + 1) if sequences % n == 0)
    has_apple = runtime.device in (Auto.AUTO, DeviceKind.MPS) and torch.backends.mps.is_available()
    if runtime.processes > 1 and has_apple:
        raise TrainingError(
            f"params.yaml: runtime.processes must be 1 on a Mac's GPU, got {runtime.processes}; or set runtime.device "
            "to cpu"
        )
    if is_gpu and runtime.processes > gpus:
        raise TrainingError(
            f"params.yaml: runtime.processes must be at most the {gpus} GPUs of this machine, "
            f"got {runtime.processes}; use auto"
        )
    return runtime.processes


def takes_gpus(runtime: RuntimeConfig) -> bool:
    """Whether each process has an NVIDIA GPU of its own."""
    return runtime.device in (Auto.AUTO, DeviceKind.CUDA) and torch.cuda.is_available()


def _compiler_exists() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def _choose_device(wanted: Auto | DeviceKind) -> torch.device:
    there: dict[DeviceKind, Callable[[], bool]] = {
        DeviceKind.CUDA: torch.cuda.is_available,
        DeviceKind.MPS: torch.backends.mps.is_available,
        DeviceKind.CPU: lambda: True,
    }
    if isinstance(wanted, Auto):
        wanted = next(kind for kind, available in there.items() if available())
    elif not there[wanted]():
        raise TrainingError(
            f"params.yaml: runtime.device must be a device of this machine, got {wanted.value!r}, which torch "
            f"{torch.__version__} does not find; use auto"
        )
    return torch.device(wanted.value)


def _choose_precision(wanted: Auto | Precision, device: torch.device) -> Precision:
    if wanted in _REFUSED.get(device.type, ()):
        raise TrainingError(
            f"params.yaml: runtime.precision must not be {wanted.value} on {device.type}, which does not compute in "
            "it; use auto"
        )
    if not isinstance(wanted, Auto):
        return wanted
    if device.type == "cuda":
        return Precision.BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.FP16
    if device.type == "mps":
        return Precision.FP16
    return Precision.BF16 if _has_bf16_products() else Precision.FP32


def _has_bf16_products() -> bool:
    """Whether the CPU has bf16 instructions; emulated, bf16 is slower than float32."""
    return any(_cpu_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _cpu_capabilities() -> dict[str, object]:
    """What torch knows about the CPU; empty where this torch cannot tell."""
    ask = getattr(torch.cpu, "get_capabilities", dict)
    return dict(ask())
