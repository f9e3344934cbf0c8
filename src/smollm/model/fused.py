"""The model's loss on an NVIDIA GPU in bfloat16, with fewer passes over memory.

The same computation as `model`'s, which stays the reference: under autocast both keep the residual
stream and the norms in float32 and multiply in bfloat16. Here queries, keys and values are one
product, gate and up another; what lies between the products is done by `kernels`, the loss by
`linear_cross_entropy`.

Legend: B batch, T time, R rows (B*T), H hidden, N query heads, K key-value heads, D head size.
"""

import importlib.util
import os
import shutil

import torch
from torch import Tensor, nn
from torch.nn import functional

from smollm.config.model import ModelConfig
from smollm.config.runtime import Precision
from smollm.device.hardware import Hardware
from smollm.model.llama import IGNORED, KeyValueCache, LlamaForCausalLM

_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""A block's matrices, by the product that they take part in."""


def fits(config: ModelConfig, hardware: Hardware) -> bool:
    """Whether the kernels can be used: an NVIDIA GPU with bf16 products, and heads of a size that they cut well."""
    return (
        hardware.compile
        and hardware.device.type == "cuda"
        and hardware.precision is Precision.BF16
        and importlib.util.find_spec("triton") is not None
        # what Triton builds the calls of its kernels with
        and any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang")))
        and config.head_dim in (32, 64, 128)
    )


class FusedKernels:
    """Computes a model's loss, and its logits with a cache, by the kernels."""

    def loss(self, model: LlamaForCausalLM, ids: Tensor, targets: Tensor) -> Tensor:
        """As `LlamaForCausalLM.loss`."""
        from smollm.model.linear_cross_entropy import LinearCrossEntropy

        with torch.autocast(ids.device.type, enabled=False):
            x = hidden_states(model, ids)
            mean: Tensor = LinearCrossEntropy.apply(x, model.lm_head.weight, targets.flatten(), IGNORED)
            return mean

    def logits(self, model: LlamaForCausalLM, ids: Tensor, cache: KeyValueCache) -> Tensor:
        """As `LlamaForCausalLM.forward` with a cache."""
        with torch.autocast(ids.device.type, enabled=False):
            x = hidden_states(model, ids, cache)
            return functional.linear(x, model.lm_head.weight.to(x.dtype)).view(*ids.shape, -1)


def hidden_states(model: LlamaForCausalLM, ids: Tensor, cache: KeyValueCache | None = None) -> Tensor:
    """What the output projection is applied to after `ids` (B, T): normed, (R, H) bfloat16."""
    from smollm.model.kernels import AddNorm, GatedMLP, RotatedHeads

    config, body, (batch, time) = model.config, model.model, ids.shape
    heads = (config.num_attention_heads, config.num_key_value_heads)
    where, mask = cache.next(time) if cache else (torch.arange(time, device=ids.device), None)
    cos, sin = body.cos[where], body.sin[where]
    x = functional.embedding(ids.flatten(), body.embed_tokens.weight)  # (R, H)
    branch = None
    for index, layer in enumerate(body.layers):
        inner, outer, gated, down = half_weights(layer)
        x, normed = AddNorm.apply(x, branch, layer.get_parameter("input_layernorm.weight"), config.rms_norm_eps)
        query, key, value = RotatedHeads.apply(normed, inner, cos, sin, batch, heads)
        if cache:
            key, value = cache.extend(index, where, key, value)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=cache is None, enable_gqa=heads[0] != heads[1]
        )  # (B, N, T, D)
        branch = functional.linear(mixed.transpose(1, 2).reshape(batch * time, -1), outer)
        x, normed = AddNorm.apply(
            x, branch, layer.get_parameter("post_attention_layernorm.weight"), config.rms_norm_eps
        )
        branch = GatedMLP.apply(normed, gated, down)
    if cache:
        cache.length += time
    _, normed = AddNorm.apply(x, branch, body.norm.weight, config.rms_norm_eps)
    return normed


def half_weights(block: nn.Module) -> tuple[Tensor, ...]:
    """A block's, in bfloat16: queries, keys and values; attention's output; gate and up; down.

    One block's at a time, so that its gradient is there, and on its way to other processes, while the blocks below
    compute theirs.
    """
    from smollm.model.kernels import HalfWeights

    weights = [block.get_parameter(f"{name}.weight") for group in _GROUPS for name in group]
    packed: tuple[Tensor, ...] = HalfWeights.apply([len(group) for group in _GROUPS], *weights)
    return packed
