"""Counts of parameters, moments and FLOPs, and MFU. Standard library only."""

import re
from dataclasses import replace

from smollm.config.model import ModelConfig
from smollm.config.training import OptimizerKind

PEAK_TFLOPS = {
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}
"""Dense bf16 (fp16 before Ampere) matrix rate by the vendors' datasheets, in 10^12 FLOP/s."""


def peak_tflops(device_name: str) -> float | None:
    """The device's peak, or None where it is not known (then no MFU is reported)."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)


def parameter_count(config: ModelConfig) -> int:
    """Number of trained parameters; tied ones count once."""
    hidden, size = config.hidden_size, config.head_dim
    attention = 2 * hidden * size * (config.num_attention_heads + config.num_key_value_heads)
    block = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    return embeddings + config.num_hidden_layers * block + hidden


def moment_count(config: ModelConfig, kind: OptimizerKind) -> int:
    """Number of values in the optimizer's moments: two per parameter with AdamW, one where Muon has the parameter.

    AdamW's step counters, one per tensor, are left out.
    """
    if kind is OptimizerKind.ADAMW:
        return 2 * parameter_count(config)
    outside = parameter_count(replace(config, num_hidden_layers=0))
    norms = 2 * config.num_hidden_layers * config.hidden_size
    return parameter_count(config) + outside + norms


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of a forward and backward pass per token: 6 per matrix weight, 12·L·N·D·T of attention.

    Counted as in arXiv:2204.02311, appendix B: no discount for the causal mask, recomputation is
    not counted, the embedding matrix counts once, as output projection.
    """
    untied = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    weights = parameter_count(config) - norms - untied
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence_length
    return 6.0 * weights + 12.0 * attention


def model_flops_utilization(tokens_per_second: float, flops: float, peak: float) -> float:
    """MFU: the fraction of the device's peak (in TFLOP/s) that the model's own FLOPs use."""
    return tokens_per_second * flops / (peak * 1e12)
