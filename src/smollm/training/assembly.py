"""A model and its optimizer, on the hardware and as the runtime says, with the micro-batch that fits."""

from collections.abc import Callable

from smollm.config.fields import Auto
from smollm.config.file import near_divisors
from smollm.config.model import ModelConfig
from smollm.config.runtime import RuntimeConfig
from smollm.config.training import TrainingConfig
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.errors import TrainingError
from smollm.model.llama import LlamaForCausalLM
from smollm.model.sharding import shard
from smollm.training.batches import Batches
from smollm.training.micro_batch import rehearse, rehearse_sharded
from smollm.training.optim import Optimizer


def assemble(
    model: ModelConfig,
    training: TrainingConfig,
    runtime: RuntimeConfig,
    batches: Batches,
    document_end: int,
    hardware: Hardware,
    warn: Callable[[str], None],
    group: Group,
) -> tuple[LlamaForCausalLM, Optimizer, int]:
    """The model at its first weights, its optimizer, and how many sequences are computed at once.

    Args:
        batches: of the stage, to try with.
        document_end: the id that ends a document.
        warn: hears of what does not work and is done without.
        group: the processes that train together, all of which assemble.

    Raises:
        TrainingError: the micro-batch that is wanted divides no process's share of a step; or none fits.
    """
    made = LlamaForCausalLM(model)
    made.model.recomputes = runtime.activation_checkpointing
    if training.mask_documents:
        made.document_end = document_end
    wanted, share = runtime.micro_batch_size, training.sequences_per_step // group.size
    if not isinstance(wanted, Auto) and share % wanted:
        near = " or ".join(map(str, near_divisors(share, wanted)))
        raise TrainingError(
            f"params.yaml: runtime.micro_batch_size must divide the {share} sequences that each of {group.size} "
            f"processes has of a {batches.stage} step, got {wanted}; use {near}"
        )
    if runtime.shard_weights and group.size > 1:
        fitting = rehearse_sharded(made, batches, wanted, hardware, warn, group)
        shard(made, group, hardware.device)
    else:
        fitting = rehearse(made.to(hardware.device), batches, wanted, hardware, warn, group.size)
    return made, Optimizer(made, training.optimizer, hardware.dtype, group), group.all_reduce(fitting, min)
