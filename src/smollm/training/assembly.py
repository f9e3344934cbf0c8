"""A model and its optimizer on the hardware, with the micro-batch size that fits: all that a step needs."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.model import fused
from smollm.model.llama import Execution, LlamaForCausalLM, attends_at_once
from smollm.model.sharding import shard
from smollm.state.tokens import vocabulary_size
from smollm.training.data import TrainingData
from smollm.training.micro_batch import MicroBatchSearch
from smollm.training.optim import Optimizer
from smollm.training.settings import Settings


@dataclass(frozen=True)
class Assembly:
    """What an optimizer step needs."""

    model: LlamaForCausalLM
    optimizer: Optimizer
    hardware: Hardware
    group: Group
    """The processes that train together, each of which has an assembly."""
    micro_batch: int
    """Sequences computed at once; divides each process's sequences of a step."""


def assemble(
    settings: Settings,
    data: TrainingData,
    hardware: Hardware,
    group: Group,
    warn: Callable[[str], None],
) -> Assembly:
    """Build the model with its initial weights, move it to the device, and find the micro-batch size.

    Args:
        settings: of the stage.
        data: of the stage; the search for the micro-batch size computes on it.
        hardware: of this process.
        group: the processes that train together; all of them call this.
        warn: called with a line for each optimization that fails and is switched off.

    Raises:
        TrainingError: not even the smallest micro-batch fits into memory.
    """
    execution = choose_execution(settings, data, hardware, group)
    model = LlamaForCausalLM(settings.model, execution)
    averages = settings.training.ema_decay is not None
    search = MicroBatchSearch(data.batches, settings.runtime.micro_batch_size, hardware, warn, group, averages)
    if execution.sharded:
        micro_batch = search.run_sharded(model)
        shard(model, group, hardware.device)
    else:
        micro_batch = search.run(model.to(hardware.device))
    hardware.reset_peak_memory()  # that of micro-batches which did not fit
    optimizer = Optimizer(model, settings.training.optimizer, hardware.dtype, group)
    return Assembly(model, optimizer, hardware, group, group.all_reduce(micro_batch, min))


def hardware_values(assembly: Assembly, sequence_length: int) -> dict[str, object]:
    """What a `hardware` record holds: what this start of a stage computes on, and how."""
    model, hardware, execution = assembly.model.config, assembly.hardware, assembly.model.execution
    kernel = "masked"  # torch does not say which kernel it chooses with a mask
    if attends_at_once(hardware.device, hardware.dtype, sequence_length):
        kernel = "all scores at once"
    elif execution.document_end is None:
        heads = (model.num_attention_heads, model.num_key_value_heads)
        kernel = hardware.attention_kernel(*heads, model.head_dim, sequence_length)
    return {
        "processes": assembly.group.size,
        "device": hardware.device.type,
        "device_name": hardware.name,
        "precision": hardware.precision.value,
        "compiled": execution.compiled or execution.kernels is not None,
        "micro_batch_size": assembly.micro_batch,
        "attention_kernel": kernel,
        "torch": torch.__version__,
    }


def choose_execution(settings: Settings, data: TrainingData, hardware: Hardware, group: Group) -> Execution:
    """The fastest execution that the settings and the hardware allow."""
    training = settings.training
    execution = Execution(
        document_end=data.end_of_text_id if training.mask_documents else None,
        dropout=training.dropout,
        label_smoothing=training.label_smoothing,
        smoothed_ids=vocabulary_size(data.tokenizer) if training.label_smoothing else None,
        recompute_activations=settings.runtime.activation_checkpointing,
        sharded=settings.runtime.shard_weights and group.size > 1,
    )
    needs_modules = training.mask_documents or execution.recompute_activations or execution.sharded
    if not needs_modules and fused.fits(settings.model, hardware):
        return replace(execution, kernels=fused.FusedKernels())
    return replace(execution, compiled=hardware.compile)
