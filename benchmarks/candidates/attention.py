"""Attention of one layer over the documents of a step, in the layout of `kernels.RotatedHeads`.

Legend: B batch, T time, N query heads, K key-value heads, D head size.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from candidates.variant import BATCH, DEVICE, DTYPE, MODEL, ON_GPU, TIME, Choice, Variant, blocks, distance
from torch import Tensor
from torch.nn import functional

from smollm.model.llama import document_mask

HEADS, SHARED, SIZE = MODEL.num_attention_heads, MODEL.num_key_value_heads, MODEL.head_dim
MEAN_DOCUMENT = 800 if ON_GPU else 12
SLOTS = 512
"""Documents that a step may have where their number must be fixed, as for a CUDA graph; there are about 110."""
CHECKED = 2
"""Sequences compared with the reference, which holds all scores in float32."""


def document_ids() -> Tensor:
    """(B, T) token ids, 0 at the end of each document; lengths are log-normal, sigma 1, cut where a sequence ends."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.exp(torch.randn(BATCH * TIME, generator=generator) + math.log(MEAN_DOCUMENT) - 0.5)
    ends = lengths.long().clamp(min=1).cumsum(0) - 1
    ids = torch.ones(BATCH * TIME, dtype=torch.long)
    ids[ends[ends < len(ids)]] = 0
    return ids.view(BATCH, TIME).to(DEVICE)


def starts_of(ids: Tensor) -> Tensor:
    """Where each token's document starts, (B, T)."""
    after = torch.arange(1, TIME + 1, device=ids.device).expand_as(ids)
    starts = torch.where(ids == 0, after, 0).cummax(1).values.roll(1, 1)
    starts[:, 0] = 0
    return starts


def boundaries(ids: Tensor) -> Tensor:
    """Where documents begin among all tokens of a step, then its end until all slots are full: int32."""
    everything = ids.numel()
    begins = starts_of(ids) == torch.arange(TIME, device=ids.device)
    where = torch.where(begins.flatten(), torch.arange(everything, device=ids.device), everything)
    return where.sort().values[: SLOTS + 1].int()


def masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """As `llama.Attention` computes it."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return functional.scaled_dot_product_attention(query, key, value, mask)


def causal(query: Tensor, key: Tensor, value: Tensor, _: object) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def variable_lengths(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, expand: bool) -> Tensor:
    from torch.nn.attention import varlen

    if expand:
        key, value = (part.repeat_interleave(HEADS // SHARED, 1) for part in (key, value))
    attend: Any = varlen.varlen_attn
    parameters = inspect.signature(attend).parameters  # other ones in each release of torch
    how: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    if "enable_gqa" in parameters:
        how["enable_gqa"] = not expand
    flat = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    mixed: Tensor = attend(*flat, bounds, bounds, TIME, TIME, **how)
    return mixed.unflatten(0, (BATCH, TIME)).transpose(1, 2)


def flexible() -> tuple[Callable[..., Tensor], Callable[[Tensor], Any]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def block_mask(ids: Tensor) -> object:
        starts = starts_of(ids)

        def sees(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (starts[b, q] <= k) & (k <= q)

        return create_block_mask(sees, BATCH, None, TIME, TIME, device=DEVICE.type)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        return flex_attention(query, key, value, block_mask=mask, enable_gqa=True)

    return torch.compile(attend, fullgraph=True, dynamic=False) if ON_GPU else attend, block_mask


def own() -> tuple[Callable[..., Tensor], Callable[[Tensor], Any], list[Choice]]:
    from candidates import document_attention as kernels

    def attend(query: Tensor, key: Tensor, value: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
        return kernels.DocumentAttention.apply(query, key, value, *bounds)

    forward = blocks(
        "QUERIES KEYS", (128, 64, 4, 3), (128, 64, 8, 3), (64, 64, 4, 3), (128, 128, 8, 2), (128, 32, 4, 4)
    )
    queries = blocks("QUERIES KEYS", (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (128, 64, 4, 2), (64, 32, 4, 3))
    keys = blocks("KEYS QUERIES", (128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 32, 4, 3), (128, 32, 8, 3))
    choices = [
        Choice(kernels.FORWARD, forward, "forward"),
        Choice(kernels.BACKWARD_QUERIES, queries, "forward and backward"),
        Choice(kernels.BACKWARD_KEYS, keys, "forward and backward"),
    ]
    return attend, lambda ids: kernels.document_bounds(ids, 0), choices


def attention(name: str) -> Variant:
    """The attention that is called so in `NAMES`."""
    ids, choices = document_ids(), list[Choice]()
    if name in ("causal (bound)", "own, causal"):
        ids.fill_(1)
    attend: Callable[..., Tensor]
    prepare: Callable[[Tensor], Any]
    if name.startswith("today"):
        attend, prepare = torch.compile(masked, dynamic=False) if ON_GPU else masked, partial(document_mask, end=0)
    elif name.startswith("causal"):
        attend, prepare = causal, lambda _: None
    elif name.startswith("varlen_attn"):
        attend, prepare = partial(variable_lengths, expand="expanded" in name), boundaries
    elif name.startswith("Flex"):
        attend, prepare = flexible()
    else:
        attend, prepare, choices = own()
    generator = torch.Generator(DEVICE).manual_seed(0)
    packed = torch.randn(BATCH, TIME, HEADS + 2 * SHARED, SIZE, generator=generator, device=DEVICE).to(DTYPE)
    heads = packed.transpose(1, 2).split((HEADS, SHARED, SHARED), 1)
    query, key, value = (part.detach().requires_grad_() for part in heads)
    incoming = torch.randn(BATCH, TIME, HEADS, SIZE, generator=generator, device=DEVICE).to(DTYPE).transpose(1, 2)
    prepared: Any = prepare(ids)

    def forward() -> Tensor:
        return attend(query, key, value, prepared)

    def both() -> tuple[Tensor, ...]:
        mixed = forward()
        return mixed, *torch.autograd.grad(mixed, (query, key, value), incoming)

    def errors() -> dict[str, float]:
        exact = [part.detach()[:CHECKED].float().requires_grad_() for part in (query, key, value)]
        groups = HEADS // SHARED
        scores = exact[0] @ exact[1].repeat_interleave(groups, 1).mT * SIZE**-0.5
        weights = scores.masked_fill(~document_mask(ids[:CHECKED], 0), -math.inf).softmax(-1)
        mixed = weights @ exact[2].repeat_interleave(groups, 1)
        expected = mixed, *torch.autograd.grad(mixed, exact, incoming[:CHECKED].float())
        names = ("output", "queries' gradient", "keys'", "values'")
        return {
            name: distance(ours.detach()[:CHECKED], theirs.detach())
            for name, ours, theirs in zip(names, both(), expected, strict=True)
        }

    operations: dict[str, Callable[[], object]] = {"once a step": partial(prepare, ids)}
    return Variant(operations | {"forward": forward, "forward and backward": both}, errors, choices)


NAMES = (
    "today (mask)", "causal (bound)", "varlen_attn", "varlen_attn, expanded", "FlexAttention", "own", "own, causal",
)  # fmt: skip
