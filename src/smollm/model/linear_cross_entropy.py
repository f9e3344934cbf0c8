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
    logits, targets, losses, uniforms, share, smoothing, IGNORED: tl.constexpr, V: tl.constexpr,
    SMOOTHED: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * V
    target = tl.load(targets + row)
    largest = -float("inf")
    total = 0.0
    sum_smoothed = 0.0
    for first in range(0, V, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(here + at, mask=at < V, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
        largest = larger
        if SMOOTHED:
            sum_smoothed += tl.sum(tl.where(at < SMOOTHED, x, 0.0), 0)
    log_sum = largest + tl.log(total)
    counts = target != IGNORED
    chosen = tl.load(here + tl.where(counts, target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(counts, log_sum - chosen, 0.0))
    if SMOOTHED:
        tl.store(uniforms + row, log_sum - sum_smoothed / SMOOTHED)
    if GRADIENT:
        tl.debug_barrier()  # `chosen` is read before it is overwritten
        weight = tl.where(counts, tl.load(share), 0.0)
        for first in range(0, V, BLOCK):
            at = first + tl.arange(0, BLOCK)
            x = tl.load(here + at, mask=at < V, other=-float("inf")).to(tl.float32)
            wanted = tl.where(at == target, 1.0 - smoothing, 0.0)
            if SMOOTHED:
                wanted += tl.where(at < SMOOTHED, smoothing / SMOOTHED, 0.0)
            tl.store(here + at, weight * (tl.exp(x - log_sum) - wanted), mask=at < V)


class LinearCrossEntropy(Function):
    """Mean cross-entropy of a linear layer's output, by slices of rows; the forward pass computes the gradient too.

    A slice's logits are overwritten by their gradient, so that only one slice is in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignored: int, smoothing: float = 0.0, smoothed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (R, H) bfloat16.
            weight: (V, H) float32; multiplied in bfloat16.
            targets: (R,) int64.
            ignored: targets with this id are ignored; there are none if labels are smoothed.
            smoothing: fraction of each target's probability that is spread over the ids below `smoothed`.

        Returns:
            The objective, with label smoothing, and the mean cross-entropy over the targets that are not ignored,
            which has no gradient: float32 scalars.
        """
        wants = ctx.needs_input_grad[0]
        half = weight.to(x.dtype)
        losses, uniforms = (torch.empty(len(x), device=x.device) for _ in range(2))
        share = (targets != ignored).sum().float().reciprocal()
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight if wants else weight[:0])
        for start in range(0, len(x), _LOGITS_ROWS):
            rows = slice(start, start + _LOGITS_ROWS)
            logits = x[rows] @ half.mT
            _cross_entropy[(len(logits),)](
                logits, targets[rows], losses[rows], uniforms[rows], share, smoothing, ignored, len(weight),
                smoothed if smoothing else 0, 16384, wants, num_warps=16,
            )  # fmt: skip
            if wants:
                torch.mm(logits, half, out=grad_x[rows])
                torch.addmm(grad_weight, logits.mT, x[rows], out_dtype=torch.float32, out=grad_weight)
        if wants:
            ctx.save_for_backward(grad_x, grad_weight)
        loss = losses.sum() * share
        objective = torch.lerp(loss, uniforms.mean(), smoothing) if smoothing else loss.clone()
        ctx.mark_non_differentiable(loss)
        return objective, loss

    @staticmethod
    def backward(ctx: Any, incoming: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * incoming, grad_weight * incoming, None, None, None, None
