"""How many sequences are computed at once, found out before the first step."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from smollm.config.fields import Auto
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.errors import TrainingError
from smollm.model import fused
from smollm.model.llama import LlamaForCausalLM
from smollm.tracking import announce
from smollm.training.batches import Batches

_MOST_TOKENS = {"cuda": 65_536, "mps": 16_384, "cpu": 16_384}
"""More tokens at once cost memory and gain no speed."""


def candidates(sequences: int, length: int, most_tokens: int) -> list[int]:
    """Divisors of `sequences` of at most `most_tokens` tokens, from the largest; 1 at least."""
    divisors = [n for n in range(sequences, 0, -1) if sequences % n == 0]
    return [n for n in divisors if n * length <= most_tokens] or [1]


def rehearse(
    model: LlamaForCausalLM,
    batches: Batches,
    wanted: Auto | int,
    hardware: Hardware,
    warn: Callable[[str], None],
    processes: int = 1,
) -> int:
    """Compute one gradient and throw it away; return the micro-batch size that worked.

    Takes the kernels of `fused` where they fit, else compiles the model where `hardware` says so. Where
    kernels or compiler fail, falls back to the compiled and to the uncompiled model, with a warning.
    A step's sequences are dealt out to so many `processes`.

    Raises:
        TrainingError: not even the smallest, or the wanted one, fits into memory.
    """
    most = _MOST_TOKENS[hardware.device.type]
    sizes = candidates(batches.sequences // processes, batches.length, most) if isinstance(wanted, Auto) else [wanted]
    is_usual = model.document_end is None and not model.model.recomputes and not model.is_sharded
    if is_usual and fused.fits(model.config, hardware):
        fused.fuse(model)
    elif hardware.compile:
        model.compile_parts()
    # averaging keeps the gradient of the micro-batches before beside the one that travels
    reserved = _reserve(model, 2 if processes == 1 else 3, hardware)
    waiting = list(sizes)
    while waiting:
        try:
            _try(model, batches, waiting[0], hardware)
        except Exception as error:
            # the CPU's allocator has no error of its own
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                del waiting[0]
            elif isinstance(error, torch._inductor.exc.InductorError | torch._dynamo.exc.TorchDynamoException):
                warn(announce.compilation_failed(error))
                model.forget_compilation()
            elif model.fused is not None:  # Triton has no error that all of its own derive from
                warn(announce.kernels_failed(error))
                model.forget_compilation()
                model.compile_parts()
            else:
                raise
        else:
            del reserved
            return waiting[0]
        # outside the handlers, whose tracebacks hold the tensors
        gc.collect()
        if hardware.device.type == "cuda":
            torch.cuda.empty_cache()
    raise _too_large(hardware, sizes[-1], batches.length)


def rehearse_sharded(
    model: LlamaForCausalLM,
    batches: Batches,
    wanted: Auto | int,
    hardware: Hardware,
    warn: Callable[[str], None],
    group: Group,
) -> int:
    """As `rehearse`, for a model that is about to be divided among the processes of `group`.

    Nothing is tried with the whole model, where one process that fails would leave the others waiting: what it will
    need is reckoned from what models of one and of two blocks take.

    Raises:
        TrainingError: not even the smallest, or the wanted one, fits into memory.
    """
    one, two = (_shallow(model, layers, hardware) for layers in (1, 2))
    most = rehearse(one, batches, wanted, hardware, warn, group.size)
    if one.is_compiled:
        model.compile_parts()
        two.compile_parts()
    if hardware.device.type != "cuda":
        return most
    most = group.all_reduce(most, min)
    everything, shallow, deeper = (4 * sum(weight.numel() for weight in m.parameters()) for m in (model, one, two))
    block, share = deeper - shallow, batches.sequences // group.size
    gc.collect()
    torch.cuda.empty_cache()  # what the rehearsal took is free
    free = 0.95 * torch.cuda.mem_get_info()[0]
    sizes = candidates(most, batches.length, most * batches.length) if isinstance(wanted, Auto) else [most]
    for size in sizes:
        try:
            first, second = (_growth(twin, batches, size, hardware) for twin in (one, two))
            activations: float = first + (second - first - block) * (model.config.num_hidden_layers - 1)
        except torch.OutOfMemoryError:
            activations = math.inf
        # weights, gradients and two moments; what is gathered: weights of two blocks and of the head, gradients of
        # two blocks, or of all while there are several micro-batches
        divided, gathered = 4 * everything / group.size, shallow + block + (everything if size < share else block)
        if group.all_reduce(int(divided + gathered + activations <= free), min):
            return size
    raise _too_large(hardware, sizes[-1], batches.length)


def _shallow(model: LlamaForCausalLM, layers: int, hardware: Hardware) -> LlamaForCausalLM:
    """A model like this with so few layers."""
    with torch.random.fork_rng(devices=[]):
        made = LlamaForCausalLM(replace(model.config, num_hidden_layers=layers)).to(hardware.device)
    made.document_end, made.model.recomputes, made.is_sharded = model.document_end, model.model.recomputes, True
    return made


def _growth(model: LlamaForCausalLM, batches: Batches, size: int, hardware: Hardware) -> int:
    """Bytes that a gradient takes beside the weights: itself, and the activations."""
    _try(model, batches, size, hardware)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _try(model, batches, size, hardware)
    return torch.cuda.max_memory_allocated() - before


def _too_large(hardware: Hardware, size: int, length: int) -> TrainingError:
    return TrainingError(
        f"params.yaml: runtime.micro_batch_size must fit the memory of {hardware.name}, got {size} sequences of "
        f"{length} tokens; lower {'it, or ' if size > 1 else ''}the stage's sequence_length, set "
        "runtime.activation_checkpointing, or choose a smaller model"
    )


def _reserve(model: LlamaForCausalLM, numbers: int, hardware: Hardware) -> list[torch.Tensor]:
    """The memory that so many numbers a weight will take on a GPU: AdamW's two moments at least."""
    if hardware.device.type != "cuda":
        return []
    return [torch.empty_like(weight) for weight in model.parameters() for _ in range(numbers)]


def _reserve_validation(
    model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor, hardware: Hardware
) -> torch.Tensor | None:
    """The memory that validation will take beside a captured step, whose own nothing else can use."""
    if model.fused is None or not hardware.captures:
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad(), hardware.autocast():
        model.loss(inputs, targets)
    size = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    return torch.empty(size, dtype=torch.uint8, device=inputs.device)


def _try(model: LlamaForCausalLM, batches: Batches, size: int, hardware: Hardware) -> None:
    try:
        inputs, targets = (torch.from_numpy(ids[:size].copy()).to(hardware.device) for ids in batches(1))
        _beside = _reserve_validation(model, inputs, targets, hardware)
        with hardware.autocast():
            loss = model.loss(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        hardware.synchronize()
    finally:
        model.zero_grad(set_to_none=True)
