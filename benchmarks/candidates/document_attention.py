"""Causal attention within documents, forward and backward, for any lengths of documents and without a mask in memory.

A token attends to the positions from its document's start to its own. Documents follow each other, so the keys that a
block of queries needs, and the queries that need a block of keys, are ranges: blocks outside of them are skipped, and
only blocks at their borders are masked. Shapes do not depend on the documents, so that a CUDA graph can replay it.
Sums are in a fixed order: the result is the same each time. Algorithm: arXiv:2307.08691.

Legend: B batch, T time, N query heads, K key-value heads, D head size.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

_LEAST = tl.constexpr(-1e30)
"""Score of what is not attended to; finite, since all of a block's scores in a row may be it."""
_LOG2_E = 1.4426950408889634

FORWARD = {"QUERIES": 128, "KEYS": 64, "num_warps": 4, "num_stages": 3}
BACKWARD_QUERIES = {"QUERIES": 128, "KEYS": 64, "num_warps": 8, "num_stages": 3}
BACKWARD_KEYS = {"KEYS": 128, "QUERIES": 64, "num_warps": 8, "num_stages": 3}
"""Block sizes; in each kernel the first is a multiple of the second."""


def document_bounds(ids: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Where each token's document starts, and the position after its end, within the sequence: (B, T) int32 each.

    Args:
        ids: (B, T).
        end: the id of the end-of-text token, which belongs to the document that it ends.
    """
    time = ids.shape[1]
    after = torch.arange(1, time + 1, dtype=torch.int32, device=ids.device).expand_as(ids)
    is_last = ids == end
    ends = torch.where(is_last, after, time).flip(1).cummin(1).values.flip(1)
    starts = torch.where(is_last, after, 0).cummax(1).values  # of the document after each token
    return starts.roll(1, 1).index_fill_(1, torch.zeros(1, dtype=torch.long, device=ids.device), 0), ends


@triton.jit
def _block(tensor, row, head, first, size, ROWS: tl.constexpr, D: tl.constexpr, CHECKS: tl.constexpr):
    """Positions first, ... of one sequence's head, (ROWS, D); zeros after the sequence's end."""
    at = first + tl.arange(0, ROWS)
    here = tensor + at[:, None] * row + head * D + tl.arange(0, D)[None, :]
    return tl.load(here, mask=(at < size)[:, None], other=0.0) if CHECKS else tl.load(here)


@triton.jit
def _seen_keys(starts, first, size, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The keys that a block of queries sees: all see those from the second number returned to the block's first query.

    Some see those from the first number to the second, both multiples of KEYS, and those of the block itself.
    """
    lowest = tl.load(starts + first) // KEYS * KEYS
    highest = tl.load(starts + tl.minimum(first + QUERIES, size) - 1)
    return lowest, tl.minimum(tl.cdiv(highest, KEYS) * KEYS, first)


@triton.jit
def _forward_block(
    q, key, value, row, head, low, start, at, size, scale, most, total, mixed,
    MASKS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    scores = tl.dot(q, tl.trans(_block(key, row, head, low, size, KEYS, D, MASKS))) * scale
    if MASKS:
        keys = (low + tl.arange(0, KEYS))[None, :]
        scores = tl.where((start[:, None] <= keys) & (keys <= at[:, None]), scores, _LEAST)
    higher = tl.maximum(most, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(most - higher)
    total = total * shrink + tl.sum(weights, 1)
    v = _block(value, row, head, low, size, KEYS, D, MASKS)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None])
    return higher, total, mixed


@triton.jit
def _forward(
    query, key, value, starts, out, log_sums, row, size, scale,
    N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    first, sequence, head = tl.program_id(0) * QUERIES, tl.program_id(1) // N, tl.program_id(1) % N
    sequence, shared = sequence.to(tl.int64) * size, head // (N // K)
    query, key, value, starts = query + sequence * row, key + sequence * row, value + sequence * row, starts + sequence
    at = first + tl.arange(0, QUERIES)
    start = tl.load(starts + at, mask=at < size, other=0)
    q = _block(query, row, head, first, size, QUERIES, D, True)
    most = tl.full((QUERIES,), _LEAST, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, D), tl.float32)
    lowest, full = _seen_keys(starts, first, size, QUERIES, KEYS)
    for low in range(full, first, KEYS):
        most, total, mixed = _forward_block(
            q, key, value, row, shared, low, start, at, size, scale, most, total, mixed, False, KEYS, D
        )
    before = (full - lowest) // KEYS
    for index in range(before + QUERIES // KEYS):
        low = tl.where(index < before, lowest, first - before * KEYS) + index * KEYS
        most, total, mixed = _forward_block(
            q, key, value, row, shared, low, start, at, size, scale, most, total, mixed, True, KEYS, D
        )
    here = out + (sequence + at)[:, None] * (N * D) + head * D + tl.arange(0, D)[None, :]
    tl.store(here, (mixed / total[:, None]).to(out.dtype.element_ty), mask=(at < size)[:, None])
    tl.store(log_sums + sequence * N + head * size + at, most + tl.log2(total), mask=at < size)


@triton.jit
def _queries_block(
    q, incoming, key, value, row, head, low, start, at, size, scale, log_sum, delta, gradient,
    MASKS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    k = _block(key, row, head, low, size, KEYS, D, MASKS)
    v = _block(value, row, head, low, size, KEYS, D, MASKS)
    weights = tl.exp2(tl.dot(q, tl.trans(k)) * scale - log_sum[:, None])
    if MASKS:
        keys = (low + tl.arange(0, KEYS))[None, :]
        weights = tl.where((start[:, None] <= keys) & (keys <= at[:, None]), weights, 0.0)
    grad_scores = weights * (tl.dot(incoming, tl.trans(v)) - delta[:, None])
    return tl.dot(grad_scores.to(k.dtype), k, gradient)


@triton.jit
def _backward_queries(
    query, key, value, starts, out, incoming, log_sums, deltas, grad_query, row, grad_row, size, scale, factor,
    N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    first, sequence, head = tl.program_id(0) * QUERIES, tl.program_id(1) // N, tl.program_id(1) % N
    sequence, shared = sequence.to(tl.int64) * size, head // (N // K)
    query, key, value, starts = query + sequence * row, key + sequence * row, value + sequence * row, starts + sequence
    at = first + tl.arange(0, QUERIES)
    start = tl.load(starts + at, mask=at < size, other=0)
    q = _block(query, row, head, first, size, QUERIES, D, True)
    do = _block(incoming + sequence * (N * D), N * D, head, first, size, QUERIES, D, True)
    mixed = _block(out + sequence * (N * D), N * D, head, first, size, QUERIES, D, True)
    delta = tl.sum(mixed.to(tl.float32) * do.to(tl.float32), 1)
    per_head = sequence * N + head * size + at
    tl.store(deltas + per_head, delta, mask=at < size)
    log_sum = tl.load(log_sums + per_head, mask=at < size, other=0.0)
    gradient = tl.zeros((QUERIES, D), tl.float32)
    lowest, full = _seen_keys(starts, first, size, QUERIES, KEYS)
    for low in range(full, first, KEYS):
        gradient = _queries_block(
            q, do, key, value, row, shared, low, start, at, size, scale, log_sum, delta, gradient, False, KEYS, D
        )
    before = (full - lowest) // KEYS
    for index in range(before + QUERIES // KEYS):
        low = tl.where(index < before, lowest, first - before * KEYS) + index * KEYS
        gradient = _queries_block(
            q, do, key, value, row, shared, low, start, at, size, scale, log_sum, delta, gradient, True, KEYS, D
        )
    here = grad_query + (sequence + at)[:, None] * grad_row + head * D + tl.arange(0, D)[None, :]
    tl.store(here, (gradient * factor).to(grad_query.dtype.element_ty), mask=(at < size)[:, None])


@triton.jit
def _keys_block(
    k, v, query, incoming, starts, log_sums, deltas, row, head, low, keys, size, scale, grad_k, grad_v,
    MASKS: tl.constexpr, QUERIES: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    at = low + tl.arange(0, QUERIES)
    q = _block(query, row, head, low, size, QUERIES, D, MASKS)
    do = _block(incoming, N * D, head, low, size, QUERIES, D, MASKS)
    inside = at < (size if MASKS else low + QUERIES)
    log_sum = tl.load(log_sums + head * size + at, mask=inside, other=0.0)
    delta = tl.load(deltas + head * size + at, mask=inside, other=0.0)
    weights = tl.exp2(tl.dot(k, tl.trans(q)) * scale - log_sum[None, :])
    if MASKS:
        start = tl.load(starts + at, mask=at < size, other=0)
        weights = tl.where((start[None, :] <= keys[:, None]) & (keys[:, None] <= at[None, :]), weights, 0.0)
    grad_v = tl.dot(weights.to(do.dtype), do, grad_v)
    grad_scores = weights * (tl.dot(v, tl.trans(do)) - delta[None, :])
    return tl.dot(grad_scores.to(q.dtype), q, grad_k), grad_v


@triton.jit
def _backward_keys(
    query, key, value, starts, ends, incoming, log_sums, deltas, grad_key, grad_value, row, grad_row, size, scale,
    factor, N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    first, sequence, head = tl.program_id(0) * KEYS, tl.program_id(1) // K, tl.program_id(1) % K
    sequence = sequence.to(tl.int64) * size
    query, key, value, starts = query + sequence * row, key + sequence * row, value + sequence * row, starts + sequence
    incoming, log_sums, deltas = incoming + sequence * (N * D), log_sums + sequence * N, deltas + sequence * N
    keys = first + tl.arange(0, KEYS)
    k = _block(key, row, head, first, size, KEYS, D, True)
    v = _block(value, row, head, first, size, KEYS, D, True)
    grad_k, grad_v = tl.zeros((KEYS, D), tl.float32), tl.zeros((KEYS, D), tl.float32)
    # all queries from the block's end to `full` see all of the keys, those from there to `last` some of them
    full = tl.maximum(tl.load(ends + sequence + first) // QUERIES * QUERIES, first + KEYS)
    last = tl.load(ends + sequence + tl.minimum(first + KEYS, size) - 1)
    beyond = tl.cdiv(tl.maximum(last - full, 0), QUERIES)
    for group in range(N // K):
        by = head * (N // K) + group
        for low in range(first + KEYS, full, QUERIES):
            grad_k, grad_v = _keys_block(
                k, v, query, incoming, starts, log_sums, deltas, row, by, low, keys, size, scale, grad_k, grad_v,
                False, QUERIES, N, D,
            )  # fmt: skip
        for index in range(KEYS // QUERIES + beyond):
            low = tl.where(index < KEYS // QUERIES, first, full - KEYS) + index * QUERIES
            grad_k, grad_v = _keys_block(
                k, v, query, incoming, starts, log_sums, deltas, row, by, low, keys, size, scale, grad_k, grad_v,
                True, QUERIES, N, D,
            )  # fmt: skip
    here = (sequence + keys)[:, None] * grad_row + head * D + tl.arange(0, D)[None, :]
    inside = (keys < size)[:, None]
    tl.store(grad_key + here, (grad_k * factor).to(grad_key.dtype.element_ty), mask=inside)
    tl.store(grad_value + here, grad_v.to(grad_value.dtype.element_ty), mask=inside)


class DocumentAttention(Function):
    """Attention of each token to those before it in its own document, and to itself."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """
        Args:
            query: (B, N, T, D).
            key, value: (B, K, T, D); like `query` views of one tensor (B, T, N+2K, D).
            starts, ends: of `document_bounds`, (B, T) int32.

        Returns:
            (B, N, T, D), a view of (B, T, N, D).
        """
        (batch, heads, time, size), shared = query.shape, key.shape[1]
        row = query.stride(2)
        assert all(part.stride()[1:] == (size, row, 1) for part in (query, key, value)), "heads of one tensor"
        assert all(part.stride(0) == time * row for part in (query, key, value)), "heads of one tensor"
        out = torch.empty(batch, time, heads, size, dtype=query.dtype, device=query.device)
        log_sums = torch.empty(batch, heads, time, device=query.device)
        _forward[(triton.cdiv(time, FORWARD["QUERIES"]), batch * heads)](
            query, key, value, starts, out, log_sums, row, time, size**-0.5 * _LOG2_E, heads, shared, size, **FORWARD
        )
        ctx.save_for_backward(query, key, value, starts, ends, out, log_sums)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, starts, ends, out, log_sums = ctx.saved_tensors
        (batch, heads, time, size), shared = query.shape, key.shape[1]
        row, width, scale, factor = query.stride(2), heads + 2 * shared, size**-0.5 * _LOG2_E, size**-0.5
        incoming = incoming.transpose(1, 2).contiguous()  # (B, T, N, D), as it mostly is already
        packed = torch.empty(batch, time, width, size, dtype=query.dtype, device=query.device).transpose(1, 2)
        gradients = packed[:, :heads], packed[:, heads : heads + shared], packed[:, heads + shared :]
        deltas = torch.empty_like(log_sums)
        _backward_queries[(triton.cdiv(time, BACKWARD_QUERIES["QUERIES"]), batch * heads)](
            query, key, value, starts, out, incoming, log_sums, deltas, gradients[0], row, width * size, time, scale,
            factor, heads, shared, size, **BACKWARD_QUERIES,
        )  # fmt: skip
        _backward_keys[(triton.cdiv(time, BACKWARD_KEYS["KEYS"]), batch * shared)](
            query, key, value, starts, ends, incoming, log_sums, deltas, *gradients[1:], row, width * size, time, scale,
            factor, heads, shared, size, **BACKWARD_KEYS,
        )  # fmt: skip
        return *gradients, None, None
