"""How many sequences are computed at once: the most that fit into memory, found by trial before the first step."""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from smollm.config.fields import Auto
from smollm.config.training import OptimizerKind
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.errors import TrainingError
from smollm.model.llama import LlamaForCausalLM
from smollm.model.throughput import moment_count, parameter_count
from smollm.tracking import announce
from smollm.training.batches import Batches

_MAX_TOKENS = {"cuda": 65_536, "mps": 16_384, "cpu": 16_384}
"""Tokens in one forward pass; more cost memory and gain no speed."""


@dataclass(frozen=True)
class MicroBatchSearch:
    """Tries micro-batch sizes on sequences of the stage."""

    batches: Batches
    setting: Auto | int
    """runtime.micro_batch_size."""
    hardware: Hardware
    warn: Callable[[str], None]
    """Called with a line for each optimization that fails and is switched off."""
    group: Group
    keeps_average: bool = False
    """Whether an average of the weights is in memory as well."""

    @property
    def local_sequences(self) -> int:
        """Sequences of a step that each process computes."""
        return self.batches.sequences // self.group.size

    def run(self, model: LlamaForCausalLM) -> int:
        """Compute one gradient and discard it; return the micro-batch size that worked.

        If the kernels or the compiler fail, `model` falls back to a slower execution, with a warning.

        Raises:
            TrainingError: not even the smallest, or the one that is set, fits into memory.
        """
        sizes = [self.setting] if not isinstance(self.setting, Auto) else self._candidates()
        untried = list(sizes)
        while untried:
            try:
                self._try(model, untried[0], self._reserved_values(model, untried[0]))
            except Exception as error:
                if _is_out_of_memory(error):
                    del untried[0]
                elif not self._fall_back(model, error):
                    raise
            else:
                return untried[0]
            # outside the handlers, whose tracebacks hold the tensors
            gc.collect()
            if self.hardware.device.type == "cuda":
                torch.cuda.empty_cache()
        raise out_of_memory(self.hardware, sizes[-1], self.batches.length)

    def _candidates(self) -> list[int]:
        return candidates(self.local_sequences, self.batches.length, _MAX_TOKENS[self.hardware.device.type])

    def run_sharded(self, model: LlamaForCausalLM) -> int:
        """As `run`, for a model that is about to be sharded over the group.

        The whole model is not tried, because a process that fails would leave the others waiting. Its memory is
        extrapolated from models of one and of two blocks.

        Raises:
            TrainingError: not even the smallest, or the one that is set, fits into memory.
        """
        one_block, two_blocks = (self._shallow(model, layers) for layers in (1, 2))
        most = self.run(one_block)
        for other in (model, two_blocks):
            other.execute_as(one_block.execution)
        if self.hardware.device.type != "cuda":
            return most
        most = self.group.all_reduce(most, min)
        sizes = candidates(most, self.batches.length, most * self.batches.length)
        if not isinstance(self.setting, Auto):
            sizes = [most]
        gc.collect()
        torch.cuda.empty_cache()
        free = 0.95 * torch.cuda.mem_get_info()[0]
        for size in sizes:
            fits = self._sharded_bytes(model, one_block, two_blocks, size) <= free
            if self.group.all_reduce(int(fits), min):
                return size
        raise out_of_memory(self.hardware, sizes[-1], self.batches.length)

    def _sharded_bytes(
        self, model: LlamaForCausalLM, one_block: LlamaForCausalLM, two_blocks: LlamaForCausalLM, size: int
    ) -> float:
        """Estimate the bytes that the sharded `model` needs on this process with micro-batches of `size` sequences."""
        weights, one_block_weights, two_block_weights = (
            4 * sum(weight.numel() for weight in each.parameters()) for each in (model, one_block, two_blocks)
        )
        block_weights = two_block_weights - one_block_weights
        try:
            one_block_pass, two_block_pass = (self._pass_bytes(each, size) for each in (one_block, two_blocks))
        except torch.OutOfMemoryError:
            return math.inf
        # each further block adds its activations; the gradients of the first block and of the head are included
        block_activations = two_block_pass - one_block_pass - block_weights
        model_pass = one_block_pass + block_activations * (model.config.num_hidden_layers - 1)
        # weights, gradients, moments and perhaps the average
        shards = ((2 + self.keeps_average) * weights + 4 * _moment_values(model)) / self.group.size
        # two blocks and the head
        gathered_weights = one_block_weights + block_weights
        # a second block's, or all blocks' while there are several micro-batches
        unreduced_gradients = weights if size < self.local_sequences else block_weights
        return shards + gathered_weights + unreduced_gradients + model_pass

    def _pass_bytes(self, model: LlamaForCausalLM, size: int) -> int:
        """Bytes that a forward and backward pass needs besides the weights: gradients and activations."""
        self._try(model, size)  # compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._try(model, size)
        return torch.cuda.max_memory_allocated() - before

    def _shallow(self, model: LlamaForCausalLM, layers: int) -> LlamaForCausalLM:
        """A model like `model`, executed alike, with fewer layers."""
        with torch.random.fork_rng(devices=[]):
            shallow = LlamaForCausalLM(replace(model.config, num_hidden_layers=layers), model.execution)
        return shallow.to(self.hardware.device)

    def _reserved_values(self, model: LlamaForCausalLM, size: int) -> int:
        """Number of float32 values that training keeps besides the weights and what a try with `size` allocates."""
        # the average, and the accumulated gradient or the one that is being averaged over the group
        copies = self.keeps_average + (size < self.local_sequences or self.group.size > 1)
        return _moment_values(model) + copies * parameter_count(model.config)

    def _try(self, model: LlamaForCausalLM, size: int, reserved_values: int = 0) -> None:
        """Compute the gradient of `size` sequences while `reserved_values` float32 values of a GPU's memory are taken.

        Raises:
            Exception: it does not fit into memory, or the kernels or the compiler fail.
        """
        try:
            reserved = [self.hardware.reserve(reserved_values)]  # until this returns
            inputs, targets = (torch.from_numpy(ids[:size].copy()).to(self.hardware.device) for ids in self.batches(1))
            reserved.append(_reserve_validation(model, inputs, targets, self.hardware))
            with self.hardware.autocast():
                objective, _ = model.training_loss(inputs, targets, inputs[:, 0])
            objective.backward()  # type: ignore[no-untyped-call]
            self.hardware.synchronize()
        finally:
            model.zero_grad(set_to_none=True)

    def _fall_back(self, model: LlamaForCausalLM, error: Exception) -> bool:
        """Execute `model` without what raised `error`; False if neither the kernels nor the compiler did."""
        execution = model.execution
        if execution.kernels is not None:  # Triton's errors have no common base
            self.warn(announce.kernels_failed(error))
            model.execute_as(replace(execution, kernels=None, compiled=True))
        elif isinstance(error, torch._inductor.exc.InductorError | torch._dynamo.exc.TorchDynamoException):
            self.warn(announce.compilation_failed(error, torch._inductor.runtime.cache_dir_utils.cache_dir()))
            model.execute_as(replace(execution, compiled=False))
        else:
            return False
        return True


def _moment_values(model: LlamaForCausalLM) -> int:
    """Number of float32 values in the moments of the optimizer that keeps the most, AdamW.

    Muon needs no more, with the temporary copies that its update makes.
    """
    return max(moment_count(model.config, kind) for kind in OptimizerKind)


def candidates(sequences: int, length: int, most_tokens: int) -> list[int]:
    """Divisors of `sequences` of at most `most_tokens` tokens, from the largest; 1 at least."""
    divisors = [n for n in range(sequences, 0, -1) if sequences % n == 0]
    return [n for n in divisors if n * length <= most_tokens] or [1]


def out_of_memory(hardware: Hardware, size: int, length: int) -> TrainingError:
    """The error for `size` sequences of `length` tokens that do not fit into memory."""
    return TrainingError(
        f"params.yaml: runtime.micro_batch_size must fit the memory of {hardware.name}, got {size} sequences of "
        f"{length} tokens; lower {'it, or ' if size > 1 else ''}the stage's sequence_length, set "
        "runtime.activation_checkpointing, or choose a smaller model"
    )


def _is_out_of_memory(error: Exception) -> bool:
    # the CPU's allocator has no error of its own
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _reserve_validation(
    model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor, hardware: Hardware
) -> torch.Tensor | None:
    """Reserve the memory that validation will need in addition to a captured step, whose memory it cannot share."""
    if model.execution.kernels is None or not hardware.captures:
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad(), hardware.autocast():
        model.loss(inputs, targets)
    size = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    return torch.empty(size, dtype=torch.uint8, device=inputs.device)
