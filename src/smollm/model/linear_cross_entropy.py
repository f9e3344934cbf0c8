"""Output projection and mean cross-entropy in one operation, never with all logits in memory: a Triton kernel.

The plain model computes the same from its logits, and tests compare the two. Needs Triton:
import it only where there is an NVIDIA GPU.

Legend: R rows (batch times time), H hidden, V vocabulary.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

_LOGITS_ROWS = 8192
"""Rows whose logits exist at once: enough to fill a GPU, little memory."""


@triton.jit
def _cross_entropy(
    logits, targets, losses, share, IGNORED: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * V
    target = tl.load(targets + row)
    largest = -float("inf")
    total = 0.0
    for first in range(0, V, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(here + at, mask=at < V, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
        largest = larger
    log_sum = largest + tl.log(total)
    counts = target != IGNORED
    chosen = tl.load(here + tl.where(counts, target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(counts, log_sum - chosen, 0.0))
    if GRADIENT:
        tl.debug_barrier()  # `chosen` is read before it is overwritten
        weight = tl.where(counts, tl.load(share), 0.0)
        for first in range(0, V, BLOCK):
            at = first + tl.arange(0, BLOCK)
            x = tl.load(here + at, mask=at < V, other=-float("inf")).to(tl.float32)
            gradient = weight * (tl.exp(x - log_sum) - tl.where(at == target, 1.0, 0.0))
            tl.store(here + at, gradient, mask=at < V)


class LinearCrossEntropy(Function):
    """Mean cross-entropy of a linear layer's output, by slices of rows; the forward pass computes the gradient too.

    A slice's logits are overwritten by their gradient, so that only one slice is in memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignored: int) -> Tensor:
        """
        Args:
            x: (R, H) bfloat16.
            weight: (V, H) float32; multiplied in bfloat16.
            targets: (R,) int64.
            ignored: targets with this id are ignored.

        Returns:
            The mean over the targets that are not ignored, a float32 scalar.
        """
        wants = ctx.needs_input_grad[0]
        half = weight.to(x.dtype)
        losses = torch.empty(len(x), device=x.device)
        share = (targets != ignored).sum().float().reciprocal()
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight if wants else weight[:0])
        for start in range(0, len(x), _LOGITS_ROWS):
            rows = slice(start, start + _LOGITS_ROWS)
            logits = x[rows] @ half.mT
            _cross_entropy[(len(logits),)](
                logits, targets[rows], losses[rows], share, ignored, len(weight), 16384, wants, num_warps=16
            )
            if wants:
                torch.mm(logits, half, out=grad_x[rows])
                torch.addmm(grad_weight, logits.mT, x[rows], out_dtype=torch.float32, out=grad_weight)
        if wants:
            ctx.save_for_backward(grad_x, grad_weight)
        return losses.sum() * share

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * incoming, grad_weight * incoming, None, None
