"""A step by itself: gradient and update, and that replaying them from CUDA graphs changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smollm.config.model import ModelConfig
from smollm.config.runtime import Precision
from smollm.config.training import OptimizerConfig, OptimizerKind
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.model import fused
from smollm.model.llama import Execution, LlamaForCausalLM
from smollm.training.assembly import Assembly
from smollm.training.optim import Optimizer
from smollm.training.step import Step

CONFIG = OptimizerConfig(OptimizerKind.MUON, 0.01, 0.01, 0.1, None, None, (0.9, 0.95), 1e-8, 0.95, 5)


def build(
    config: ModelConfig, hardware: Hardware, kind: OptimizerKind, micro_batch: int = 2, dropout: float = 0.0
) -> Step:
    torch.manual_seed(0)
    kernels = fused.FusedKernels() if fused.fits(config, hardware) else None
    model = LlamaForCausalLM(config, Execution(dropout=dropout, kernels=kernels)).to(hardware.device)
    optimizer = Optimizer(model, replace(CONFIG, kind=kind), hardware.dtype)
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.precision is Precision.FP16)
    return Step(Assembly(model, optimizer, hardware, Group.single(), micro_batch), scaler, 1.0)


def train(step: Step, steps: int = 6) -> list[list[float]]:
    """Loss and norm of each of a few steps, with another batch, learning rate and dropout each time."""
    numbers = []
    for number in range(1, steps + 1):
        batch = torch.randint(320, (2, 4, 16), generator=torch.Generator().manual_seed(number))
        seeds = 4 * number + torch.arange(4) if step.model.execution.dropout else None
        numbers.append(step.gradient(batch.pin_memory() if torch.cuda.is_available() else batch, seeds).tolist())
        step.update(0.01 / number)
    return numbers


@contextmanager
def counted_replays() -> Iterator[list[torch.cuda.CUDAGraph]]:
    """Collects the CUDA graphs that are replayed."""
    replayed: list[torch.cuda.CUDAGraph] = []
    replay = torch.cuda.CUDAGraph.replay
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(graph), replay(graph)))
        yield replayed


def weights(step: Step) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in step.model.weights().items()}


def test_the_gradient_is_clipped_and_the_update_taken_with_the_rate(model_config: ModelConfig, cpu: Hardware) -> None:
    step = build(model_config, cpu, OptimizerKind.ADAMW, micro_batch=4)
    reference = build(model_config, cpu, OptimizerKind.ADAMW).model
    batch = torch.randint(320, (2, 4, 16), generator=torch.Generator().manual_seed(1))
    loss = reference.loss(*batch)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    assert norm > 1
    assert step.gradient(batch).tolist() == [loss.item(), norm.item()]
    optimizer = Optimizer(reference, replace(CONFIG, kind=OptimizerKind.ADAMW))
    optimizer.set_learning_rate(0.003)
    optimizer.parts[0].step()
    step.update(0.003)
    for name, value in weights(step).items():
        assert torch.equal(value, reference.weights()[name]), name
    assert all(parameter.grad is None for parameter in step.model.parameters())


def test_a_skipped_step_changes_nothing_but_the_loss_scale(model_config: ModelConfig, cpu: Hardware) -> None:
    step = build(model_config, replace(cpu, precision=Precision.FP16), OptimizerKind.MUON)
    train(step, 1)
    before, moments = weights(step), {name: value.clone() for name, value in step.optimizer.state().items()}
    step.gradient(torch.randint(320, (2, 4, 16)))
    matrix = step.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert matrix.grad is not None
    matrix.grad.fill_(torch.inf)  # of one optimizer alone
    step.update(0.01, skip=True)
    assert all(torch.equal(value, before[name]) for name, value in weights(step).items())
    assert all(torch.equal(value, moments[name]) for name, value in step.optimizer.state().items())
    assert matrix.grad is None


@pytest.mark.gpu
@pytest.mark.parametrize("micro_batch", [4, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", list(OptimizerKind))
def test_replayed_steps_are_those_taken_one_by_one(
    wide_config: ModelConfig, gpu: Hardware, kind: OptimizerKind, dropout: float, micro_batch: int
) -> None:
    replayed = build(wide_config, gpu, kind, micro_batch, dropout)
    single = build(wide_config, replace(gpu, compile=False), kind, micro_batch, dropout)
    single.model.execute_as(replayed.model.execution)
    with counted_replays() as graphs:
        numbers = train(replayed)
    assert len(graphs) == 2 * 5  # gradient and update of all steps but the first
    with counted_replays() as graphs:
        for taken, expected in zip(numbers, train(single), strict=True):
            assert taken == pytest.approx(expected, rel=2e-3)
    assert not graphs
    for name, value in weights(replayed).items():
        assert (value - weights(single)[name]).norm() <= 5e-3 * value.norm(), name
    moments = replayed.optimizer.state()
    assert all(value == 6 for name, value in moments.items() if name.endswith(".step"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
@pytest.mark.parametrize("kind", list(OptimizerKind))
def test_other_precisions_follow_bf16(
    wide_config: ModelConfig, gpu: Hardware, precision: Precision, kind: OptimizerKind
) -> None:
    half = train(build(wide_config, gpu, kind))
    other = build(wide_config, replace(gpu, precision=precision), kind)
    other.scaler.load_state_dict({**other.scaler.state_dict(), "scale": 2.0**10} if other.scaler.is_enabled() else {})
    with counted_replays() as graphs:
        for numbers, expected in zip(train(other), half, strict=True):
            assert numbers[0] == pytest.approx(expected[0], rel=0.02)
    assert not graphs
