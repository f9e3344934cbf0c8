"""The Llama: the whole model in one file, read from top to bottom.

Parameter names are those of Hugging Face's `LlamaForCausalLM`, so weights load in both
directions. Architecture: arXiv:2302.13971 (Llama), arXiv:2305.13245 (grouped-query attention).

Legend: B batch, T time, H hidden, N query heads, K key-value heads, D head size, F MLP width,
V vocabulary.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from smollm.config.model import ModelConfig
from smollm.model.dropout import Dropout

IGNORED = -100
"""Targets with this id are ignored by the loss."""

_AT_ONCE = 512
"""The longest sequence whose attention scores are all computed at once, in bfloat16 on a CPU."""


@dataclass
class KeyValueCache:
    """Keys and values of the positions seen so far, for every layer.

    All of it is on the device, its length too, so that the operations are the same at every position and can be
    replayed from a CUDA graph.
    """

    keys: Tensor  # (L, B, K, T, D)
    values: Tensor  # (L, B, K, T, D)
    length: Tensor
    """Positions filled: an int64 scalar."""

    @classmethod
    def empty(
        cls, config: ModelConfig, batch: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> "KeyValueCache":
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(keys, values, torch.zeros((), device=device, dtype=torch.long))

    def next(self, time: int) -> tuple[Tensor, Tensor]:
        """The `time` positions after those filled, (time,), and the mask of what each attends to, (time, T)."""
        where = self.length + torch.arange(time, device=self.length.device)
        return where, torch.arange(self.keys.shape[3], device=where.device) <= where[:, None]

    def extend(self, layer: int, where: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values (B, K, time, D) at positions `where`; return all of that layer's."""
        for all_of_them, new in ((self.keys[layer], keys), (self.values[layer], values)):
            all_of_them.index_copy_(2, where, new.to(all_of_them.dtype))
        return self.keys[layer], self.values[layer]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


Cached = tuple[KeyValueCache, int, Tensor, Tensor]
"""A cache, a layer's index, the positions to compute and the mask of what they attend to."""


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, (T, D) float32 each (arXiv:2104.09864)."""
    size = config.head_dim
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(config.max_position_embeddings, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D/2) of `x` (B, heads, T, D) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


def document_mask(ids: Tensor, end: int) -> Tensor:
    """What each position attends to: itself and the positions before it in its own document, (B, 1, T, T) bool.

    Args:
        ids: (B, T).
        end: the id of the end-of-text token, which is the last token of its document.
    """
    ends = (ids == end).long()
    number = ends.cumsum(1) - ends  # (B, T)
    same = number[:, :, None] == number[:, None, :]
    return same.tril()[:, None]


def attends_at_once(device: torch.device, dtype: torch.dtype, length: int) -> bool:
    """Whether attention within a sequence of `length` tokens computes all its scores at once."""
    return device.type == "cpu" and dtype is torch.bfloat16 and length <= _AT_ONCE


def attend_at_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with all its scores in memory: faster than torch's kernel for short sequences in bfloat16 on a CPU.

    Args:
        query: (B, N, T, D).
        key, value: (B, K, T, D).
        mask: what each position attends to, (B, 1, T, T) bool; None: to itself and all before it.
    """
    batch, heads, time, size = query.shape
    if mask is None:
        mask = torch.ones(time, time, dtype=torch.bool, device=query.device).tril()
    rows = (batch * key.shape[1], -1, time)  # queries that share keys are rows of one product
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, float("-inf"))
    bias = bias.expand(batch, heads, time, time).reshape(rows)
    scores = torch.baddbmm(bias, query.reshape(*rows[:2], size), key.flatten(0, 1).mT, alpha=size**-0.5)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value.flatten(0, 1)).view(batch, heads, time, size)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.head_dim
        self.head_dim = size
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * size, bias=False)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * size, hidden, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cached: Cached | None = None, mask: Tensor | None = None
    ) -> Tensor:
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.head_dim)
        query = rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)  # (B, N, T, D)
        key = rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)  # (B, K, T, D)
        value = self.v_proj(x).view(heads).transpose(1, 2)  # (B, K, T, D)
        if cached is None and attends_at_once(query.device, query.dtype, time):
            mixed = attend_at_once(query, key, value, mask)
            return self.o_proj(mixed.transpose(1, 2).reshape(batch, time, -1))
        groups = query.shape[1] // key.shape[1]
        if cached is not None:
            cache, layer, where, mask = cached
            key, value = (part.to(query.dtype) for part in cache.extend(layer, where, key, value))
        elif mask is not None:  # GPU attention kernels support grouped heads or a mask, not both
            key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
        mixed = functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, enable_gqa=groups != 1
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, time, -1))


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cached: Cached | None = None,
        mask: Tensor | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, cached, mask)
        x = x + (dropout(mixed, 0) if dropout else mixed)
        out = self.mlp(self.post_attention_layernorm(x))
        return x + (dropout(out, 1) if dropout else out)


class LlamaModel(nn.Module):
    """Embedding, blocks and final norm: token ids to hidden states."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        ids: Tensor,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
        dropout: Dropout | None = None,
        recompute_activations: bool = False,
    ) -> Tensor:
        """Hidden states (B, T, H) of `ids` (B, T); attention is causal, or as `mask` says."""
        time = ids.shape[1]
        x = self.embed_tokens(ids)  # (B, T, H)
        if cache is None:
            cos, sin = self.cos[:time], self.sin[:time]
            if dropout:
                x = dropout(x, 0)
            for index, layer in enumerate(self.layers):
                dropout_here = dropout.at(1 + 2 * index, 2) if dropout else None
                if recompute_activations:
                    x = checkpoint(layer, x, cos, sin, None, mask, dropout_here, use_reentrant=False)
                else:
                    x = layer(x, cos, sin, None, mask, dropout_here)
            return x
        where, mask = cache.next(time)
        cos, sin = self.cos[where], self.sin[where]
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, (cache, index, where, mask))
        cache.length += time
        return x


class Kernels(Protocol):
    """A faster implementation of a model's losses and of its logits with a cache."""

    def losses(
        self, model: "LlamaForCausalLM", ids: Tensor, targets: Tensor, dropout: Dropout | None
    ) -> tuple[Tensor, Tensor]: ...

    def logits(self, model: "LlamaForCausalLM", ids: Tensor, cache: KeyValueCache) -> Tensor: ...


@dataclass(frozen=True)
class Execution:
    """How a model is computed. `recompute_activations` and the fields after it change the result only by rounding."""

    document_end: int | None = None
    """The id of end-of-text; if set, tokens attend only to their own document (not while sampling)."""
    dropout: float = 0.0
    """Dropout rate in training: of the embedding's output, and of what attention and MLP add to it."""
    label_smoothing: float = 0.0
    """Fraction of each target's probability that training spreads over all ids (arXiv:1512.00567)."""
    smoothed_ids: int | None = None
    """Label smoothing spreads over the ids below this one: those that the tokenizer has."""
    recompute_activations: bool = False
    """Whether a block's activations are recomputed in the backward pass instead of kept (arXiv:1604.06174)."""
    compiled: bool = False
    """Whether blocks, and the output projection with the loss, are compiled by torch.compile."""
    kernels: Kernels | None = None
    """If set, computes the losses and cached logits in place of the modules."""
    sharded: bool = False
    """Whether each process of a group holds some rows of each weight."""


class LlamaForCausalLM(nn.Module):
    """A Llama that predicts the next token.

    Weights are drawn from a normal distribution with standard deviation `initializer_range`;
    norms start at one.
    """

    def __init__(self, config: ModelConfig, execution: Execution | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=config.initializer_range)
        self.execute_as(execution or Execution())

    def execute_as(self, execution: Execution) -> None:
        """Compute as `execution` says from now on.

        Compilation is by part: one block, shared by all layers, and the output projection with the loss. So the first
        step takes seconds rather than a minute, for any number of layers.
        """
        self.execution = execution
        self._head = self._head_losses
        if execution.compiled:
            self._head = torch.compile(self._head_losses, fullgraph=True, dynamic=False)
        for layer in self.model.layers:
            layer._compiled_call_impl = None
            if execution.compiled:
                layer.compile(fullgraph=True, dynamic=False)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `ids` (B, T).

        With a `cache`, `ids` follow the positions that it holds: any number of them for an empty cache, afterwards
        one at a time.
        """
        assert cache is None or ids.shape[1] == 1 or cache.length == 0, "one position at a time"
        if self.execution.kernels and cache is not None:
            return self.execution.kernels.logits(self, ids, cache)
        logits: Tensor = self._logits(self.model(ids, cache, self._mask(ids) if cache is None else None))
        return logits

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, in nats, of `targets` (B, T) after `ids` (B, T): a float32 scalar."""
        return self._losses(ids, targets)[1]

    def training_loss(self, ids: Tensor, targets: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The objective, with dropout and label smoothing, and the mean cross-entropy, with dropout only.

        Args:
            ids, targets: (B, T) int64.
            seeds: (B,) int64, below 2^31, of the dropout masks; None: nothing is zeroed.
        """
        return self._losses(ids, targets, seeds)

    def _losses(self, ids: Tensor, targets: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # not in `training_loss`: FSDP wraps that and `loss` as forward passes, so neither calls the other
        execution = self.execution
        dropout = None
        # compiled modules take a dropout that zeroes nothing too, so as to be compiled only once
        if execution.dropout and not (execution.kernels and seeds is None):
            dropout = Dropout.of(seeds, execution.dropout, ids, 1 + 2 * self.config.num_hidden_layers)
        if execution.kernels:
            return execution.kernels.losses(self, ids, targets, dropout)
        hidden = self.model(ids, None, self._mask(ids), dropout, execution.recompute_activations)
        return self._head(hidden, targets)

    def _mask(self, ids: Tensor) -> Tensor | None:
        end = self.execution.document_end
        return None if end is None else document_mask(ids, end)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.model.norm(hidden))

    def _head_losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The objective, which assumes that no target is ignored, and the mean cross-entropy."""
        logits = self._logits(hidden).float().flatten(0, 1)  # (B*T, V)
        loss = functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)
        if not self.execution.label_smoothing:
            return loss, loss
        uniform = logits.logsumexp(-1) - logits[:, : self.execution.smoothed_ids].mean(-1)  # (B*T,)
        return torch.lerp(loss, uniform.mean(), self.execution.label_smoothing), loss

    def uncompiled(self) -> AbstractContextManager[object]:
        """A context in which compiled parts run uncompiled, for shapes that occur too rarely to be worth compiling."""
        return torch.compiler.set_stance("force_eager") if self.execution.compiled else nullcontext()

    def weights(self) -> dict[str, Tensor]:
        """Parameters by Hugging Face name, the tied output projection left out."""
        return dict(self.named_parameters())
