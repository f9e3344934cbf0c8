"""The model's loss on an NVIDIA GPU in bfloat16, with fewer passes over memory.

The same computation as in `llama`, which is the reference: under autocast both keep the residual stream and the norms
in float32 and multiply in bfloat16. Here queries, keys and values are one matrix product, gate and up another; the
operations between the products are done by `kernels`, the loss by `linear_cross_entropy`.

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
from smollm.model.dropout import Dropout
from smollm.model.llama import IGNORED, KeyValueCache, LlamaForCausalLM

_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""A block's matrices; those of a group are multiplied as one."""


def fits(config: ModelConfig, hardware: Hardware) -> bool:
    """Whether the kernels can be used: they need an NVIDIA GPU, bf16, Triton, and a head size that they support."""
    return (
        hardware.compile
        and hardware.device.type == "cuda"
        and hardware.precision is Precision.BF16
        and importlib.util.find_spec("triton") is not None
        # Triton compiles the launchers of its kernels with it
        and any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang")))
        and config.head_dim in (32, 64, 128)
    )


class FusedKernels:
    """Computes a model's losses, and its logits with a cache, with the Triton kernels."""

    def losses(
        self, model: LlamaForCausalLM, ids: Tensor, targets: Tensor, dropout: Dropout | None
    ) -> tuple[Tensor, Tensor]:
        """As `LlamaForCausalLM.training_loss`."""
        from smollm.model.linear_cross_entropy import LinearCrossEntropy

        execution = model.execution
        with torch.autocast(ids.device.type, enabled=False):
            x = hidden_states(model, ids, dropout=dropout)
            objective, loss = LinearCrossEntropy.apply(
                x,
                model.lm_head.weight,
                targets.flatten(),
                IGNORED,
                execution.label_smoothing,
                execution.smoothed_ids or 0,
            )
            return objective, loss if execution.label_smoothing else objective

    def logits(self, model: LlamaForCausalLM, ids: Tensor, cache: KeyValueCache) -> Tensor:
        """As `LlamaForCausalLM.forward` with a cache."""
        with torch.autocast(ids.device.type, enabled=False):
            x = hidden_states(model, ids, cache)
            return functional.linear(x, model.lm_head.weight.to(x.dtype)).view(*ids.shape, -1)


def hidden_states(
    model: LlamaForCausalLM, ids: Tensor, cache: KeyValueCache | None = None, dropout: Dropout | None = None
) -> Tensor:
    """The input of the output projection for `ids` (B, T): normed, (R, H) bfloat16."""
    from smollm.model.kernels import AddNorm, Drop, GatedMLP, RotatedHeads

    config, body, (batch, time) = model.config, model.model, ids.shape
    heads = (config.num_attention_heads, config.num_key_value_heads)
    where, mask = cache.next(time) if cache else (torch.arange(time, device=ids.device), None)
    cos, sin = body.cos[where], body.sin[where]
    x = functional.embedding(ids.flatten(), body.embed_tokens.weight)  # (R, H)
    if dropout:
        x = Drop.apply(x, dropout, 0)
    branch = None
    for index, layer in enumerate(body.layers):
        qkv, out, gate_up, down = half_weights(layer)
        x, normed = AddNorm.apply(x, branch, layer.get_parameter("input_layernorm.weight"), config.rms_norm_eps)
        query, key, value = RotatedHeads.apply(normed, qkv, cos, sin, batch, heads)
        if cache:
            key, value = cache.extend(index, where, key, value)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=cache is None, enable_gqa=heads[0] != heads[1]
        )  # (B, N, T, D)
        branch = functional.linear(mixed.transpose(1, 2).reshape(batch * time, -1), out)
        if dropout:
            branch = Drop.apply(branch, dropout, 1 + 2 * index)
        x, normed = AddNorm.apply(
            x, branch, layer.get_parameter("post_attention_layernorm.weight"), config.rms_norm_eps
        )
        branch = GatedMLP.apply(normed, gate_up, down)
        if dropout:
            branch = Drop.apply(branch, dropout, 2 + 2 * index)
    if cache:
        cache.length += time
    _, normed = AddNorm.apply(x, branch, body.norm.weight, config.rms_norm_eps)
    return normed


def half_weights(block: nn.Module) -> tuple[Tensor, ...]:
    """A block's weights in bfloat16: queries, keys and values; attention's output; gate and up; down.

    Copied one block at a time, so that a block's gradient is ready, and can be sent to other processes, while the
    blocks below still compute theirs.
    """
    from smollm.model.kernels import HalfWeights

    weights = [block.get_parameter(f"{name}.weight") for group in _GROUPS for name in group]
    packed: tuple[Tensor, ...] = HalfWeights.apply([len(group) for group in _GROUPS], *weights)
    return packed
