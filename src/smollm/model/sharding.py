"""Weights, gradients and moments divided among the processes of a group: torch's FSDP2 (arXiv:2304.11277).

A tensor that is divided is a DTensor, of which each process has some rows. They are gathered a block at a time, for as
long as the block computes; gradients are averaged on their way back to the rows.
"""

from typing import Any, cast

import torch
from torch import Tensor

from smollm.device.group import Group
from smollm.model.llama import LlamaForCausalLM


def shard(model: LlamaForCausalLM, group: Group, device: torch.device) -> None:
    """Leave each process of `group` its rows, on `device`, of the weights of `model`, which is the same in all."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (group.size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "loss")
    model.is_sharded = True


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def local_rows(tensor: Tensor) -> Tensor:
    """The rows of it that this process has: all, if it is not divided. Shares its memory."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All rows of it; every process asks at once."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_like(value: Tensor, pattern: Tensor) -> Tensor:
    """The whole `value`, which every process has, on the device of `pattern` and divided as that is."""
    value = value.to(pattern.device, copy=True)
    if not is_sharded(pattern) or value.ndim == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    divided = cast(Any, pattern)
    return distribute_tensor(value, divided.device_mesh, divided.placements, src_data_rank=None)
