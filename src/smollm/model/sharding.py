"""Weights, gradients and moments sharded over the processes of a group: torch's FSDP2 (arXiv:2304.11277).

A sharded tensor is a DTensor, of which each process holds some rows. Weights are gathered one block at a time, while
the block computes; gradients are averaged and reduced back to the rows. Code outside this module need not know which
tensors are sharded: each function here takes both kinds, and every process of the group calls it.

Legend: N matrices, n of them on this rank, rows and columns of a whole matrix.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, cuda, distributed
from torch.nn.utils import get_total_norm

from smollm.device.group import Group
from smollm.model.llama import LlamaForCausalLM


def shard(model: LlamaForCausalLM, group: Group, device: torch.device) -> None:
    """Shard `model`, whose weights are the same in all processes of `group`: each keeps its rows, on `device`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (group.size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for method in ("loss", "training_loss"):
        register_fsdp_forward_method(model, method)
    assert model.execution.sharded, "the model's execution must say that it is sharded"


def average_gradients(model: LlamaForCausalLM, now: bool) -> None:
    """Set whether the next backward pass of a sharded model averages gradients, or each process accumulates its own."""
    cast(Any, model).set_requires_gradient_sync(now)


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The part of each tensor that this process updates: its rows if it is sharded, else all; shares memory with it."""
    return [cast(Any, tensor).to_local() if is_sharded(tensor) else tensor for tensor in tensors]


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all tensors as one vector, a scalar."""
    return _gather(get_total_norm(list(tensors)))


def gradient_norm(model: LlamaForCausalLM) -> Tensor:
    """The 2-norm of the whole gradient, a scalar."""
    return total_norm(p.grad for p in model.parameters() if p.grad is not None)


def load_weights(model: LlamaForCausalLM, weights: dict[str, Tensor]) -> None:
    """Overwrite the weights of `model` with `weights`, by name, which every process holds in full."""
    with torch.no_grad():
        for name, parameter in model.weights().items():
            parameter.copy_(place_like(weights[name], parameter))


def place_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of `value`, which every process holds in full, on the device of `parameter` and sharded like it."""
    value = value.to(parameter.device, copy=True)
    if not is_sharded(parameter) or value.ndim == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded = cast(Any, parameter)
    return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)


def copy_to_host(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Unsharded copies in host memory; from a GPU all at once, into pinned memory that torch reuses.

    Args:
        tensors: by name.
        keep: whether this process wants the copies; otherwise it only takes part in gathering.
    """
    copies = {}
    for name, tensor in tensors.items():
        value = _gather(tensor.detach())
        if keep:
            copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            copies[name] = copy.copy_(value, non_blocking=value.is_cuda)
    if any(tensor.is_cuda for tensor in tensors.values()):
        cuda.synchronize()
    return copies


def map_matrices(
    function: Callable[[Tensor], Tensor], parts: Sequence[Tensor], parameter: Tensor, group: Group
) -> Tensor:
    """Apply `function` to matrices of one shape; each rank computes some of them.

    Args:
        function: maps whole matrices (n, rows, columns), each independently, to the same shape.
        parts: what this process holds of each matrix, (rows or some of them, columns).
        parameter: one that is sharded like the matrices.
        group: the processes; all of them call this.

    Returns:
        What this process holds of each result, stacked: (N, rows or some of them, columns).
    """
    if is_sharded(parameter):
        whole = gather_matrices(torch.stack(tuple(parts)), len(parameter), group)
        return scatter_rows(function(whole), len(parts), len(parts[0]), group)
    mine = parts[group.local_slice(len(parts))]
    # a process without a matrix still takes part in the exchange
    done = function(torch.stack(tuple(mine or parts[:1])))
    return group.all_gather_rows(done[: len(mine)], len(parts))


def gather_matrices(parts: Tensor, rows: int, group: Group) -> Tensor:
    """Exchange some rows of all matrices for all rows of some matrices.

    Args:
        parts: (N, own rows, columns): this process's rows of each matrix, as torch.chunk cuts them.
        rows: of a whole matrix.

    Returns:
        (n, rows, columns), n being N / size rounded up; matrices past the N-th are zeros.
    """
    each, most = -(-len(parts) // group.size), -(-rows // group.size)
    sent = parts.new_zeros(group.size * each, most, parts.shape[2])
    sent[: len(parts), : parts.shape[1]] = parts
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent)
    return received.view(group.size, each, most, -1).transpose(0, 1).flatten(1, 2)[:, :rows]


def scatter_rows(matrices: Tensor, count: int, local_rows: int, group: Group) -> Tensor:
    """Undo `gather_matrices`: return this process's rows of each of `count` matrices.

    Args:
        matrices: (n, rows, columns), those that this process computed.

    Returns:
        (count, local_rows, columns).
    """
    each, rows, columns = matrices.shape
    most = -(-rows // group.size)
    padded = matrices.new_zeros(each, group.size * most, columns)
    padded[:, :rows] = matrices
    sent = padded.view(each, group.size, most, columns).transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent)
    return received.flatten(0, 1)[:count, :local_rows]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _gather(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor
