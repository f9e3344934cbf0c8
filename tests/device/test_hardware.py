"""Device, precision and compilation as `runtime` asks for them, on this machine."""

import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smollm.config.fields import Auto
from smollm.config.runtime import DeviceKind, Precision, RuntimeConfig
from smollm.device.hardware import Hardware, choose, count_processes
from smollm.errors import TrainingError

RUNTIME = RuntimeConfig(
    device=DeviceKind.CPU,
    precision=Auto.AUTO,
    compile=False,
    processes=1,
    max_restarts=0,
    shard_weights=False,
    activation_checkpointing=False,
    micro_batch_size=Auto.AUTO,
    checkpoint_every_steps=10,
    keep_checkpoints=2,
    max_hours=24.0,
)
CPU_FLAGS = Path("/proc/cpuinfo")


@pytest.fixture(autouse=True)
def matmul_precision() -> Iterator[None]:
    """`choose` sets it for the whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("precision", "dtype", "matmul"),
    [(Precision.FP32, torch.float32, "highest"), (Precision.BF16, torch.bfloat16, "high")],
)
def test_a_precision_that_the_cpu_has_is_used_for_matrix_products(
    precision: Precision, dtype: torch.dtype, matmul: str
) -> None:
    hardware = choose(replace(RUNTIME, precision=precision))
    assert (hardware.device, hardware.precision, hardware.dtype) == (torch.device("cpu"), precision, dtype)
    assert torch.get_float32_matmul_precision() == matmul
    with hardware.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.TF32, Precision.FP32])
def test_float32_products_on_a_gpu_are_as_exact_as_the_precision_says(gpu: Hardware, precision: Precision) -> None:
    hardware = choose(replace(RUNTIME, device=DeviceKind.CUDA, precision=precision))
    matrix = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).cuda()
    with hardware.autocast():
        product = matrix @ matrix
    assert product.dtype == torch.float32
    exact = matrix.double() @ matrix.double()
    error = float((product.double() - exact).norm() / exact.norm())
    assert (1e-5 < error < 1e-2) if precision is Precision.TF32 else error < 1e-6


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not CPU_FLAGS.exists(), reason="reads what Linux says of an x86 CPU"
)
def test_auto_precision_is_bf16_where_the_cpu_multiplies_it_itself() -> None:
    flags = CPU_FLAGS.read_text().split()
    native = "avx512_bf16" in flags or "amx_bf16" in flags
    assert choose(RUNTIME).precision is (Precision.BF16 if native else Precision.FP32)


def test_auto_precision_is_fp32_where_the_cpu_does_not_say_that_it_multiplies_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose(RUNTIME).precision is Precision.FP32


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.TF32])
def test_a_precision_that_the_cpu_lacks_is_refused_in_one_line(precision: Precision) -> None:
    with pytest.raises(TrainingError) as caught:
        choose(replace(RUNTIME, precision=precision))
    assert str(caught.value) == (
        f"params.yaml: runtime.precision must not be {precision.value} on cpu, which does not compute in it; use auto"
    )


@pytest.mark.parametrize(
    ("device", "module"), [(DeviceKind.CUDA, torch.cuda), (DeviceKind.MPS, torch.backends.mps)], ids=["cuda", "mps"]
)
def test_a_device_that_is_not_there_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, device: DeviceKind, module: object
) -> None:
    monkeypatch.setattr(module, "is_available", lambda: False)
    with pytest.raises(TrainingError) as caught:
        choose(replace(RUNTIME, device=device))
    assert str(caught.value) == (
        f"params.yaml: runtime.device must be a device of this machine, got '{device.value}', which torch "
        f"{torch.__version__} does not find; use auto"
    )


def test_auto_device_is_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    hardware = choose(replace(RUNTIME, device=Auto.AUTO))
    assert hardware.device == torch.device("cpu")
    assert hardware.name


@pytest.mark.parametrize("wanted", [True, False])
def test_compilation_is_what_was_asked_for(wanted: bool) -> None:
    assert choose(replace(RUNTIME, compile=wanted)).compile is wanted


def test_auto_compilation_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    automatic = replace(RUNTIME, compile=Auto.AUTO)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose(automatic).compile is False
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    assert choose(automatic).compile is True


def test_auto_compilation_is_for_stages_of_many_steps_on_a_cpu() -> None:
    automatic = replace(RUNTIME, compile=Auto.AUTO)
    assert choose(automatic, 50).compile is False
    assert choose(automatic, 5000).compile is choose(automatic).compile
    assert choose(replace(RUNTIME, compile=True), 50).compile is True


def test_the_rate_of_products_is_that_of_a_machine_that_runs_torch(cpu: Hardware) -> None:
    assert 1e9 < cpu.product_rate() < 1e14


@pytest.mark.gpu
def test_reserved_memory_of_a_gpu_is_taken_until_it_is_dropped(gpu: Hardware) -> None:
    before = torch.cuda.memory_allocated()
    reserved = gpu.reserve(1 << 20)
    assert torch.cuda.memory_allocated() - before >= 4 << 20
    del reserved
    assert torch.cuda.memory_allocated() == before


def test_nothing_is_reserved_without_a_gpu(cpu: Hardware) -> None:
    assert cpu.reserve(1 << 50) is None


def test_memory_and_attention_are_described(cpu: Hardware) -> None:
    cpu.synchronize()
    assert 0.01 < cpu.peak_memory_gib() < 1024
    assert cpu.attention_kernel(4, 2, 8, 16) == "cpu default"


@pytest.mark.parametrize(("gpus", "sequences", "expected"), [(0, 32, 1), (1, 32, 1), (4, 32, 4), (3, 32, 2), (8, 6, 6)])
def test_auto_takes_every_gpu_that_shares_a_step_evenly(
    gpus: int, sequences: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert count_processes(replace(RUNTIME, device=Auto.AUTO, processes=Auto.AUTO), sequences) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(TrainingError, match="must be at most the 2 GPUs of this machine, got 4; use auto"):
        count_processes(replace(RUNTIME, device=Auto.AUTO, processes=4), 32)
