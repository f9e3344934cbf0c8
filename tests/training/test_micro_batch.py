"""How a step is cut for the hardware, and that the cut changes nothing that is computed."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.trainers import TRAINING, TrainerFactory, run
from tokenizers import Tokenizer
from torch import Tensor

from smollm.config.fields import Auto
from smollm.config.model import ModelConfig
from smollm.config.training import OptimizerConfig, OptimizerKind, ScheduleConfig
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.errors import TrainingError
from smollm.model import fused
from smollm.model.llama import Execution, LlamaForCausalLM
from smollm.state.journal import Kind
from smollm.training.batches import Batches
from smollm.training.micro_batch import MicroBatchSearch, candidates

SEQUENCES, LENGTH = 8, 16


@pytest.mark.parametrize(
    ("sequences", "length", "most_tokens", "expected"),
    [
        (32, 2048, 65_536, [32, 16, 8, 4, 2, 1]),  # exactly `most_tokens`
        (32, 2048, 65_535, [16, 8, 4, 2, 1]),
        (6, 128, 16_384, [6, 3, 2, 1]),
        (7, 100, 300, [1]),
        (12, 100, 599, [4, 3, 2, 1]),
        (4, 2048, 1024, [1]),  # not even one fits: it is tried all the same
        (1, 1, 1, [1]),
    ],
)
def test_candidates_are_the_divisors_that_fit_from_the_largest(
    sequences: int, length: int, most_tokens: int, expected: list[int]
) -> None:
    assert candidates(sequences, length, most_tokens) == expected


def make_batches(sequences: int = SEQUENCES) -> Batches:
    tokens = np.random.default_rng(0).integers(0, 275, 2000).astype(np.uint16)
    return Batches(tokens, sequences, LENGTH, seed=1, stage="pretrain")


def make_model(config: ModelConfig, execution: Execution | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config, execution)


def search(
    hardware: Hardware,
    wanted: Auto | int = Auto.AUTO,
    warn: Callable[[str], None] = pytest.fail,
    group: Group | None = None,
) -> MicroBatchSearch:
    return MicroBatchSearch(make_batches(), wanted, hardware, warn, group or Group.single())


def fail_above(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, most: int, first: Exception | None = None
) -> list[int]:
    """Let the model's loss run out of memory above `most` sequences; return the sizes that were tried.

    The first try raises `first`, where there is one.
    """
    tried: list[int] = []
    real = model.training_loss

    def loss(ids: Tensor, targets: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        tried.append(len(ids))
        if first is not None and len(tried) == 1:
            raise first
        if len(ids) > most:
            raise torch.OutOfMemoryError("out of memory")
        return real(ids, targets, seeds)

    monkeypatch.setattr(model, "training_loss", loss)
    return tried


@pytest.mark.parametrize(("wanted", "expected"), [(Auto.AUTO, 8), (8, 8), (2, 2)])
def test_a_search_leaves_weights_and_gradients_untouched(
    model_config: ModelConfig, cpu: Hardware, monkeypatch: pytest.MonkeyPatch, wanted: Auto | int, expected: int
) -> None:
    model = make_model(model_config)
    tried = fail_above(model, monkeypatch, most=8)
    before = {name: value.detach().clone() for name, value in model.weights().items()}
    state = torch.get_rng_state()
    assert search(cpu, wanted).run(model) == expected
    assert tried == [expected]
    for name, value in model.weights().items():
        assert torch.equal(value, before[name])
        assert value.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_search_out_of_memory_goes_on_with_the_next_smaller_size(
    model_config: ModelConfig, cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(model_config)
    tried = fail_above(model, monkeypatch, most=2)
    assert search(cpu).run(model) == 2
    assert tried == [8, 4, 2]
    assert all(parameter.grad is None for parameter in model.parameters())


@dataclass(frozen=True)
class Reserving(Hardware):
    """A device that notes what is reserved on it."""

    reserved: list[int] = field(default_factory=list)
    references: list["weakref.ref[Tensor]"] = field(default_factory=list)

    def reserve(self, values: int) -> Tensor:
        memory = torch.empty(values)
        self.reserved.append(values)
        self.references.append(weakref.ref(memory))
        return memory

    def is_holding(self) -> bool:
        """Whether what was reserved last is still in memory, and that alone."""
        return [reference() is not None for reference in self.references] == [False] * (len(self.reserved) - 1) + [True]


@pytest.mark.parametrize(
    ("ranks", "size", "keeps_average", "copies"),
    [
        (1, 8, False, 2),  # AdamW's moments alone
        (1, 4, False, 3),  # and the gradient accumulated before the micro-batch
        (1, 8, True, 3),  # and the average of the weights
        (1, 4, True, 4),
        (2, 4, False, 3),  # all that a rank has of a step at once; and the gradient that is averaged over the group
        (2, 2, False, 3),  # which is the accumulated one
        (2, 2, True, 4),
    ],
)
def test_a_size_is_tried_with_all_in_memory_that_a_step_needs(
    model_config: ModelConfig,
    cpu: Hardware,
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    size: int,
    keeps_average: bool,
    copies: int,
) -> None:
    """Beside the weights and one gradient, so many times as many float32 values."""
    device = Reserving(cpu.device, cpu.precision, cpu.compile, cpu.name)
    model = make_model(model_config)
    held: list[bool] = []
    fail_above(model, monkeypatch, most=size)
    limited = model.training_loss

    def loss(*batch: Tensor) -> tuple[Tensor, Tensor]:
        held.append(device.is_holding())
        return limited(*batch)

    monkeypatch.setattr(model, "training_loss", loss)
    group = Group(0, ranks)
    assert MicroBatchSearch(make_batches(), Auto.AUTO, device, pytest.fail, group, keeps_average).run(model) == size
    assert device.reserved[-1] == copies * sum(weight.numel() for weight in model.parameters())
    assert all(held)


@pytest.mark.parametrize(("wanted", "last"), [(Auto.AUTO, 1), (4, 4)])
def test_a_size_that_does_not_fit_names_the_setting_to_lower(
    model_config: ModelConfig, cpu: Hardware, monkeypatch: pytest.MonkeyPatch, wanted: Auto | int, last: int
) -> None:
    model = make_model(model_config)
    fail_above(model, monkeypatch, most=0)
    with pytest.raises(TrainingError) as caught:
        search(cpu, wanted).run(model)
    assert str(caught.value) == (
        f"params.yaml: runtime.micro_batch_size must fit the memory of this CPU, got {last} sequences of 16 tokens; "
        f"lower {'it, or ' if last > 1 else ''}the stage's sequence_length, set runtime.activation_checkpointing, "
        "or choose a smaller model"
    )


def assert_not_compiled(model: LlamaForCausalLM) -> None:
    torch.compiler.reset()  # nothing that another test compiled is found
    with torch.compiler.set_stance("fail_on_recompile"):
        model.loss(*(torch.from_numpy(ids[:1].copy()) for ids in make_batches()(1)))


@pytest.mark.parametrize(("most", "tries"), [(8, [8, 8]), (2, [8, 8, 4, 2])])
def test_a_failed_compilation_falls_back_to_the_uncompiled_model(
    model_config: ModelConfig, cpu: Hardware, monkeypatch: pytest.MonkeyPatch, most: int, tries: list[int]
) -> None:
    model = make_model(model_config, Execution(compiled=True))
    error = torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler\nand more"), None)
    tried = fail_above(model, monkeypatch, most, error)
    warnings: list[str] = []
    # uncompiled it may need more memory than it was tried with
    assert search(cpu, warn=warnings.append).run(model) == most
    assert tried == tries
    (warning,) = warnings
    assert warning.startswith("torch.compile failed (")
    assert "\n" not in warning
    assert_not_compiled(model)


def test_a_broken_compiler_is_survived(
    model_config: ModelConfig, cpu: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(model_config, Execution(compiled=True))
    warnings: list[str] = []
    broken = {"cpp.cxx": ("/bin/false",), "force_disable_caches": True}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch(broken):
        assert search(cpu, 4, warnings.append).run(model) == 4
    (warning,) = warnings
    assert warning.endswith(f"; continuing without it; if it worked before, remove its cache {tmp_path}")
    assert_not_compiled(model)


def test_kernels_that_fail_give_way_to_the_compiled_model(
    model_config: ModelConfig, cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(fused.FusedKernels):
        def losses(self, *_: object) -> tuple[Tensor, Tensor]:
            raise RuntimeError("no such kernel")

    model = make_model(model_config, Execution(kernels=Failing()))
    # compiling for real would take half a minute
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    warnings: list[str] = []
    assert search(cpu, 4, warnings.append).run(model) == 4
    assert model.execution == Execution(compiled=True)
    assert warnings == ["the Triton kernels failed (RuntimeError: no such kernel); continuing with torch.compile"]


def train_one_step(
    directory: Path, config: ModelConfig, kind: OptimizerKind, tokenizer: Tokenizer, cpu: Hardware, micro_batch: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and journalled numbers after one step on 32 sequences, `micro_batch` of them at a time."""
    training = replace(
        TRAINING,
        steps=1,
        sequences_per_step=32,
        sequence_length=LENGTH,
        # a large eps makes AdamW's first step nearly proportional to the gradient: with a small one it
        # is the gradient's sign, which hides a wrong scale and flips where the gradient is a rounding
        optimizer=OptimizerConfig(kind, 1e-3, 1e-3, 0.1, None, None, (0.9, 0.95), 0.1, 0.95, 5),
        schedule=ScheduleConfig(0, 0.0, 0.0),
        gradient_clip=1e9,
        log_every_steps=1,
        sample_every_steps=1,
        validate_every_steps=1,
    )
    trainer = run(TrainerFactory(config, tokenizer, cpu)(directory, training, micro_batch=micro_batch))
    (step,) = (record for record in trainer.journal.records() if record.kind == Kind.STEP)
    return {name: value.detach() for name, value in trainer.model.weights().items()}, step.values


@pytest.mark.parametrize("kind", list(OptimizerKind))
def test_a_step_is_the_same_however_it_is_cut(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware, kind: OptimizerKind
) -> None:
    results = {
        size: train_one_step(tmp_path / str(size), model_config, kind, tokenizer, cpu, size) for size in (32, 16, 8)
    }
    torch.manual_seed(1)
    start = LlamaForCausalLM(model_config).weights()
    weights, numbers = results[32]
    for size in (16, 8):
        for name, value in results[size][0].items():
            assert (value - weights[name]).abs().max().item() <= 1e-6, (size, name)
            assert (value - start[name]).abs().max().item() > 1e-5, name  # the step was taken
        assert results[size][1] == pytest.approx(numbers, rel=1e-5)


def test_a_step_does_depend_on_each_of_its_sequences(model_config: ModelConfig) -> None:
    # else the test above would not notice a micro-batch that is left out
    model = make_model(model_config)
    inputs, targets = (torch.from_numpy(ids.copy()) for ids in make_batches()(1))
    whole = model.loss(inputs, targets).item()
    for first in range(0, SEQUENCES, 2):
        assert abs(model.loss(inputs[first : first + 2], targets[first : first + 2]).item() - whole) > 1e-3


def test_a_model_that_is_sharded_is_tried_with_one_block(
    model_config: ModelConfig, cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(model_config)
    fail_above(model, monkeypatch, most=0)
    state = torch.get_rng_state()
    assert search(cpu, group=Group(0, 2)).run_sharded(model) == 4
    assert torch.equal(torch.get_rng_state(), state)
