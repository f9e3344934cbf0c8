"""Section `runtime`: where and how to run. It does not say what is computed, so no stage depends on it."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from smollm.config.fields import Auto, above, at_least


class DeviceKind(Enum):
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


class Precision(Enum):
    """What matrix products are computed in; weights, moments and sums are float32 in all of them."""

    BF16 = "bf16"
    FP16 = "fp16"
    """With loss scaling."""
    TF32 = "tf32"
    """float32 with a 10-bit mantissa in products, on an NVIDIA GPU."""
    FP32 = "fp32"
    """float32 throughout."""


@dataclass(frozen=True)
class RuntimeConfig:
    device: Auto | DeviceKind
    """auto: CUDA, else MPS, else the CPU."""
    precision: Auto | Precision
    """auto: bf16 where the device computes with it, else fp16 with loss scaling, else fp32."""
    compile: Auto | bool
    """auto: torch.compile where it works and pays: not for a few steps on a CPU."""
    processes: Annotated[Auto | int, at_least(1)]
    """On this machine; auto: the most GPUs that divide a step's sequences evenly, or one without a GPU."""
    max_restarts: Annotated[int, at_least(0)]
    """How often all processes are restarted after one of several was killed."""
    shard_weights: bool
    """Whether weights, gradients and moments are sharded over the processes (torch's FSDP2)."""
    activation_checkpointing: bool
    """Whether a block's activations are recomputed in the backward pass instead of kept."""
    micro_batch_size: Annotated[Auto | int, at_least(1)]
    """Sequences computed at once; auto: the largest that fits and still pays."""
    checkpoint_every_steps: Annotated[int, at_least(1)]
    """A kill loses at most this many steps."""
    keep_checkpoints: Annotated[int, at_least(1)]
    max_hours: Annotated[float, above(0)]
    """A training stage that would take longer is refused at its start."""
