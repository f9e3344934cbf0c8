"""Small models with random weights, and how much their outputs differ."""

import torch
from torch import Tensor

from smollm.config.model import ModelConfig
from smollm.model.llama import LlamaForCausalLM


def random_ids(config: ModelConfig, batch: int, time: int) -> Tensor:
    return torch.randint(config.vocab_size, (batch, time), generator=torch.Generator().manual_seed(1))


def random_model(config: ModelConfig, std: float = 0.2) -> LlamaForCausalLM:
    """All weights random, those of the norms too."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=std)
    return model


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).detach().abs().max().item()
