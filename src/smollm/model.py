"""The Llama: the whole model in one file, read from top to bottom.

Parameter names are those of Hugging Face's `LlamaForCausalLM`, so its weights load here and ours
load there. Architecture: arXiv:2302.13971 (Llama), arXiv:2305.13245 (grouped-query attention).

Legend: B batch, T time, H hidden, N query heads, K key-value heads, D head size, F MLP width,
V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from smollm.config.model import ModelConfig

IGNORED = -100
"""A target with this id counts for nothing in the loss."""


@dataclass
class KeyValueCache:
    """Keys and values of the positions seen so far, for every layer."""

    keys: Tensor  # (L, B, K, T, D)
    values: Tensor  # (L, B, K, T, D)
    length: int = 0
    """Positions filled."""

    @classmethod
    def empty(
        cls, config: ModelConfig, batch: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> "KeyValueCache":
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, (T, D) float32 each (arXiv:2104.09864)."""
    size = config.head_dim
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(config.max_position_embeddings, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of `x` (B, heads, T, D) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor] | None, start: int) -> Tensor:
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.head_dim)
        query = rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)  # (B, N, T, D)
        key = rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)  # (B, K, T, D)
        value = self.v_proj(x).view(heads).transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            keys, values = cache
            keys[:, :, start : start + time] = key
            values[:, :, start : start + time] = value
            key = keys[:, :, : start + time].to(query.dtype)
            value = values[:, :, : start + time].to(query.dtype)
        # with a cache one position at a time looks back at all others: nothing to mask
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=time > 1, enable_gqa=query.shape[1] != key.shape[1]
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
        cache: tuple[Tensor, Tensor] | None = None,
        start: int = 0,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, start)
        return x + self.mlp(self.post_attention_layernorm(x))


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

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        start = 0 if cache is None else cache.length
        positions = slice(start, start + ids.shape[1])
        cos, sin = self.cos[positions], self.sin[positions]
        x = self.embed_tokens(ids)  # (B, T, H)
        for index, layer in enumerate(self.layers):
            if cache is None:
                x = layer(x, cos, sin)
            else:
                # a layer's own forward: a compiled one would be compiled again for every length
                x = layer.forward(x, cos, sin, (cache.keys[index], cache.values[index]), start)
        if cache is not None:
            cache.length += ids.shape[1]
        return x


class LlamaForCausalLM(nn.Module):
    """A Llama that predicts the next token.

    Weights are drawn from a normal distribution with standard deviation `initializer_range`;
    norms start at one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=config.initializer_range)
        self._computed_loss = self._head_loss
        self.is_compiled = False

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `ids` (B, T).

        With a `cache`, `ids` are the positions after those that it holds: any number of them into
        an empty cache, one at a time afterwards.
        """
        assert cache is None or cache.length == 0 or ids.shape[1] == 1, "one position at a time"
        logits: Tensor = self._logits(self.model(ids, cache))
        return logits

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, in nats, of `targets` (B, T) after `ids` (B, T): a float32 scalar."""
        return self._computed_loss(self.model(ids), targets)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.model.norm(hidden))

    def _head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self._logits(hidden).float().flatten(0, 1)  # (B*T, V)
        return functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)

    def compile_parts(self) -> None:
        """Compile one block, used by all layers, and the head with its loss.

        Compiled by parts the first step comes after seconds rather than a minute, whatever the
        number of layers.
        """
        for layer in self.model.layers:
            layer.compile(fullgraph=True, dynamic=False)
        self._computed_loss = torch.compile(self._head_loss, fullgraph=True, dynamic=False)
        self.is_compiled = True

    def forget_compilation(self) -> None:
        """Go back to the uncompiled model."""
        for layer in self.model.layers:
            layer._compiled_call_impl = None
        self._computed_loss = self._head_loss
        self.is_compiled = False

    def weights(self) -> dict[str, Tensor]:
        """Parameters by Hugging Face name, the tied output projection left out."""
        return dict(self.named_parameters())
