"""Triton kernels for the memory-bound parts of a Llama's blocks, with their gradients.

Each class is one operation; `fused` chains them to a forward pass. Tests compare them with `llama`, the reference.
Needs Triton: import it only where there is an NVIDIA GPU.

Legend: B batch, T time, R rows (B*T), H hidden, N query heads, K key-value heads, D head size,
F MLP width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from smollm.model.dropout import BITS, FACTORS, Dropout

_BLOCK = 2048
"""Elements that one Triton program handles, of an MLP's row or of what dropout is applied to."""
_FIRST, _SECOND, _MASK = map(tl.constexpr, (*FACTORS, 2**BITS - 1))


@triton.jit
def _add_norm(x, added, weight, total, normed, inverse, eps, ADDS: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    here = row * H + at
    value = tl.load(x + here, mask=at < H, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(added + here, mask=at < H, other=0.0).to(tl.float32)
        tl.store(total + here, value, mask=at < H)
    scale = 1 / tl.sqrt(tl.sum(value * value, 0) / H + eps)
    tl.store(inverse + row, scale)
    tl.store(normed + here, value * scale * tl.load(weight + at, mask=at < H, other=0.0), mask=at < H)


@triton.jit
def _add_norm_gradient(
    grad_normed, grad_total, total, weight, inverse, grad_x, grad_added, grad_weight, rows,
    FLOWS: tl.constexpr, ADDS: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, LINES: tl.constexpr,
    TIMES: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, BLOCK)[None, :]
    factors = tl.load(weight + at, mask=at < H, other=0.0)
    sums = tl.zeros((LINES, BLOCK), tl.float32)
    first = tl.program_id(0).to(tl.int64) * (LINES * TIMES)
    for turn in range(TIMES):
        row = (first + turn * LINES + tl.arange(0, LINES))[:, None]
        inside = (at < H) & (row < rows)
        here = row * H + at
        incoming = tl.load(grad_normed + here, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(inverse + row, mask=row < rows, other=0.0)
        unit = tl.load(total + here, mask=inside, other=0.0).to(tl.float32) * scale
        sums += incoming * unit
        incoming = incoming * factors
        gradient = scale * (incoming - unit * (tl.sum(incoming * unit, 1, keep_dims=True) / H))
        if FLOWS:
            gradient += tl.load(grad_total + here, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + here, gradient, mask=inside)
        if ADDS:
            tl.store(grad_added + here, gradient, mask=inside)
    tl.store(grad_weight + tl.program_id(0) * H + at, tl.sum(sums, 0, keep_dims=True), mask=at < H)


class AddNorm(Function):
    """Add a branch's output to the residual stream, and norm the sum for the next branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (R, H) float32, the residual stream.
            added: (R, H) in half precision, or None for nothing.
            weight: (H,) float32.
            eps: added to the mean square.

        Returns:
            The sum, as `x`, and its norm times `weight`, bfloat16.
        """
        rows, width = x.shape
        total = x if added is None else torch.empty_like(x)
        normed = torch.empty_like(x, dtype=torch.bfloat16)
        inverse = torch.empty(rows, device=x.device)
        block = triton.next_power_of_2(width)
        _add_norm[(rows,)](x, added, weight, total, normed, inverse, eps, added is not None, width, block)
        ctx.save_for_backward(total, weight, inverse)
        ctx.adds = added is not None
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, inverse = ctx.saved_tensors
        rows, width = total.shape
        grad_x = torch.empty_like(total)
        grad_added = torch.empty_like(grad_normed) if ctx.adds else None
        lines, times = 2, min(16, triton.cdiv(rows, 4096))  # enough programs for a small batch too
        programs = triton.cdiv(rows, lines * times)
        grad_weight = torch.empty(programs, width, device=total.device)
        _add_norm_gradient[(programs,)](
            grad_normed, grad_total, total, weight, inverse, grad_x, grad_added, grad_weight, rows,
            grad_total is not None, ctx.adds, width, triton.next_power_of_2(width), lines, times, num_warps=2,
        )  # fmt: skip
        return grad_x, grad_added, grad_weight.sum(0), None


@triton.jit
def _rotate(packed, cos, sin, times, TURNED: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, D // 2)
    angle = (row % times) * D + half
    c, s = tl.load(cos + angle)[None, :], tl.load(sin + angle)[None, :]
    head = tl.arange(0, BLOCK)[:, None]
    here = packed + row * WIDTH + head * D + half[None, :]
    first = tl.load(here, mask=head < TURNED, other=0.0).to(tl.float32)
    second = tl.load(here + D // 2, mask=head < TURNED, other=0.0).to(tl.float32)
    tl.store(here, first * c - second * s, mask=head < TURNED)
    tl.store(here + D // 2, second * c + first * s, mask=head < TURNED)


@triton.jit
def _rotate_back(
    grad_queries, grad_keys, grad_values, packed, cos, sin, times, rows, a_batch, a_head, a_time, b_batch, b_head,
    b_time, c_batch, c_head, c_time, N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES))[:, None]
    half = tl.arange(0, D // 2)[None, :]
    inside = row < rows
    batch, time = row // times, row % times
    c = tl.load(cos + time * D + half, mask=inside, other=0.0)
    s = tl.load(sin + time * D + half, mask=inside, other=0.0)
    for head in tl.static_range(N + 2 * K):
        if head < N:
            source = grad_queries + batch * a_batch + time * a_time + head * a_head + half
        elif head < N + K:
            source = grad_keys + batch * b_batch + time * b_time + (head - N) * b_head + half
        else:
            source = grad_values + batch * c_batch + time * c_time + (head - N - K) * c_head + half
        first = tl.load(source, mask=inside, other=0.0)
        second = tl.load(source + D // 2, mask=inside, other=0.0)
        here = packed + row * ((N + 2 * K) * D) + head * D + half
        if head < N + K:
            tl.store(here, first * c + second * s, mask=inside)
            tl.store(here + D // 2, second * c - first * s, mask=inside)
        else:
            tl.store(here, first, mask=inside)
            tl.store(here + D // 2, second, mask=inside)


class RotatedHeads(Function):
    """Queries, keys and values by one matrix product, with rotary positions applied to queries and keys."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, batch: int, heads: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """
        Args:
            x: (R, H) bfloat16.
            weight: ((N+2K)*D, H) bfloat16: of queries, keys and values, concatenated.
            cos, sin: (T, D) float32, the second half of D a copy of the first.
            batch: B.
            heads: N and K.

        Returns:
            (B, N, T, D), (B, K, T, D) and (B, K, T, D), views of one tensor.
        """
        (rows, width), size, (queries, keys) = (len(x), len(weight)), cos.shape[1], heads
        packed = x @ weight.mT
        turned = queries + keys
        _rotate[(rows,)](
            packed, cos, sin, rows // batch, turned, width, size, triton.next_power_of_2(turned), num_warps=2
        )
        ctx.save_for_backward(x, weight, cos, sin)
        ctx.heads = heads
        parts = packed.view(batch, rows // batch, -1, size).transpose(1, 2)  # (B, N+2K, T, D)
        return parts[:, :queries], parts[:, queries:turned], parts[:, turned:]

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin = ctx.saved_tensors
        (rows, width), size, (queries, keys) = (len(x), len(weight)), cos.shape[1], ctx.heads
        packed = torch.empty(rows, width, dtype=x.dtype, device=x.device)
        assert all(part.stride(-1) == 1 for part in incoming), "attention's gradients are contiguous within a head"
        lines = 8
        _rotate_back[(triton.cdiv(rows, lines),)](
            *incoming, packed, cos, sin, incoming[0].shape[2], rows,
            *(stride for part in incoming for stride in part.stride()[:3]), queries, keys, size, lines, num_warps=2,
        )  # fmt: skip
        return packed @ weight, packed.mT @ x, None, None, None, None


@triton.jit
def _swiglu(packed, out, F: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(packed + row * 2 * F + at, mask=at < F, other=0.0).to(tl.float32)
    up = tl.load(packed + row * 2 * F + F + at, mask=at < F, other=0.0).to(tl.float32)
    # rounded where the plain model rounds
    silu = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * F + at, silu * up, mask=at < F)


@triton.jit
def _swiglu_gradient(packed, incoming, grad_packed, F: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(packed + row * 2 * F + at, mask=at < F, other=0.0).to(tl.float32)
    up = tl.load(packed + row * 2 * F + F + at, mask=at < F, other=0.0).to(tl.float32)
    gradient = tl.load(incoming + row * F + at, mask=at < F, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = (gate * share).to(incoming.dtype.element_ty).to(tl.float32)
    grad_gate = gradient * up * share * (1 + gate * (1 - share))
    tl.store(grad_packed + row * 2 * F + at, grad_gate, mask=at < F)
    tl.store(grad_packed + row * 2 * F + F + at, gradient * silu, mask=at < F)
    tl.store(incoming + row * F + at, silu * up, mask=at < F)  # the incoming gradient is not needed again


class GatedMLP(Function):
    """SwiGLU with the matrix products before and after it; the activation is recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        """
        Args:
            x: (R, H) bfloat16.
            inner: (2F, H) bfloat16: gate and up projection, concatenated.
            outer: (H, F) bfloat16: down projection.

        Returns:
            (R, H) bfloat16.
        """
        packed, width = x @ inner.mT, outer.shape[1]
        between = torch.empty(len(x), width, dtype=x.dtype, device=x.device)
        _swiglu[(len(x), triton.cdiv(width, _BLOCK))](packed, between, width, _BLOCK)
        ctx.save_for_backward(x, packed, inner, outer)
        return between @ outer.mT

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, ...]:
        x, packed, inner, outer = ctx.saved_tensors
        width = outer.shape[1]
        between = incoming @ outer
        grad_packed = torch.empty_like(packed)
        _swiglu_gradient[(len(x), triton.cdiv(width, _BLOCK))](packed, between, grad_packed, width, _BLOCK)
        grad_inner = torch.empty_like(inner)
        for half in (slice(width), slice(width, None)):  # faster than both at once
            torch.mm(grad_packed[:, half].mT, x, out=grad_inner[half])
        return grad_packed @ inner, grad_inner, incoming.mT @ between


@triton.jit
def _scramble(numbers):
    """As `dropout.scramble`, in uint32."""
    numbers = (numbers ^ (numbers >> 15)) * _FIRST & _MASK
    numbers = (numbers ^ (numbers >> 15)) * _SECOND & _MASK
    return numbers ^ (numbers >> 16)


@triton.jit
def _drop(x, out, seeds, seed_stride, threshold, scale, size, BLOCK: tl.constexpr):
    sequence = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seed = tl.load(seeds + sequence * seed_stride).to(tl.uint32)
    keeps = _scramble(at.to(tl.uint32) ^ seed) >= tl.load(threshold).to(tl.uint32)
    value = tl.load(x + sequence * size + at, mask=(at < size) & keeps, other=0.0).to(tl.float32)
    tl.store(out + sequence * size + at, value * tl.load(scale), mask=at < size)


class Drop(Function):
    """Dropout at one place of the model; the mask is computed anew in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: Dropout, place: int) -> Tensor:
        """
        Args:
            x: (R, H).
            dropout: of the batch.
            place: of the model.

        Returns:
            As `x`: some activations zeroed, the others scaled.
        """
        ctx.dropout, ctx.place = dropout, place
        return _dropped(x, dropout, place)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        return _dropped(incoming, ctx.dropout, ctx.place), None, None


def _dropped(x: Tensor, dropout: Dropout, place: int) -> Tensor:
    seeds, size, out = dropout.seeds[:, place], x.numel() // len(dropout.seeds), torch.empty_like(x)
    _drop[(len(seeds), triton.cdiv(size, _BLOCK))](
        x, out, seeds, seeds.stride(0), dropout.threshold, dropout.scale, size, _BLOCK
    )
    return out


class HalfWeights(Function):
    """bfloat16 copies of matrices, concatenated by group, with few kernel launches."""

    @staticmethod
    def forward(ctx: Any, groups: list[int], *weights: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            groups: number of matrices in each group, in order.
            weights: (rows, columns) float32 each.

        Returns:
            A matrix for each group.
        """
        ctx.groups, packed, parts = groups, [], []
        waiting = iter(weights)
        for count in groups:
            group = [next(waiting) for _ in range(count)]
            rows = [len(weight) for weight in group]
            packed.append(torch.empty(sum(rows), group[0].shape[1], dtype=torch.bfloat16, device=group[0].device))
            parts += packed[-1].split(rows)
        torch._foreach_copy_(parts, list(weights))
        ctx.rows = [len(weight) for weight in weights]
        return tuple(packed)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        rows = iter(ctx.rows)
        heights = [[next(rows) for _ in range(count)] for count in ctx.groups]
        parts = [part for packed, split in zip(incoming, heights, strict=True) for part in packed.split(split)]
        gradients = [torch.empty_like(part, dtype=torch.float32) for part in parts]
        torch._foreach_copy_(gradients, parts)
        return None, *gradients
