"""Validation loss and bits per byte, counted by hand."""

import math

import numpy as np
import pytest
import torch
from support.trainers import TRAINING
from tokenizers import Tokenizer

from smollm.config.model import ModelConfig
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.model.llama import LlamaForCausalLM
from smollm.state.tokens import token_bytes
from smollm.training.assembly import Assembly
from smollm.training.batches import Ids
from smollm.training.evaluate import Evaluator, bits_per_byte
from smollm.training.optim import Optimizer

TEXTS = ["the cat sat\ton the mät 🐈", "猫坐在垫子上", "the end of 2024"]


def windows_over(tokenizer: Tokenizer, length: int) -> Ids:
    """Windows of `length` + 1 whose targets are `TEXTS`, each before an end-of-text token or more."""
    stream = [tokenizer.token_to_id("x")]  # an input alone, so that its byte is none of those predicted
    for text in TEXTS:
        stream += [*tokenizer.encode(text).ids, 0]
    stream += [0] * (-(len(stream) - 1) % length)
    count = (len(stream) - 1) // length
    return np.array([stream[n * length : (n + 1) * length + 1] for n in range(count)], np.int64)


def assembly(model: LlamaForCausalLM, hardware: Hardware, micro_batch: int) -> Assembly:
    optimizer = Optimizer(model, TRAINING.optimizer)
    return Assembly(model, optimizer, hardware, Group.single(), micro_batch)


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_loss_and_bits_per_byte_are_those_counted_by_hand(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware, batch: int
) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(model_config)
    windows = windows_over(tokenizer, 8)
    assert len(windows) % 4  # so that the last batch of 4 is partial
    nats = 0.0
    for window in windows:
        with torch.no_grad():
            logits = model(torch.tensor(window[None, :-1]))[0].double()
        for place, target in enumerate(window[1:]):
            nats += math.log(logits[place].exp().sum()) - float(logits[place, target])

    result = Evaluator(windows, token_bytes(tokenizer), assembly(model, cpu, batch))(model)
    assert result.loss == pytest.approx(nats / (8 * len(windows)), rel=1e-5)
    size = sum(len(text.encode()) for text in TEXTS)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    model = LlamaForCausalLM(model_config)
    torch.nn.init.zeros_(model.lm_head.weight)
    result = Evaluator(windows_over(tokenizer, 8), token_bytes(tokenizer), assembly(model, cpu, 2))(model)
    assert result.loss == pytest.approx(math.log(320), rel=1e-6)


def test_evaluation_leaves_no_gradient_behind(model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware) -> None:
    model = LlamaForCausalLM(model_config)
    Evaluator(windows_over(tokenizer, 8), token_bytes(tokenizer), assembly(model, cpu, 2))(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_text_of_end_of_text_tokens_alone_divides_by_no_zero(model_config: ModelConfig, cpu: Hardware) -> None:
    model = LlamaForCausalLM(model_config)
    windows = np.zeros((1, 9), np.int64)
    result = Evaluator(windows, np.zeros(275, np.int64), assembly(model, cpu, 1))(model)
    assert math.isfinite(result.bits_per_byte)


def test_bits_per_byte_converts_nats_per_token() -> None:
    # 2 bits a token, 12 tokens for 8 bytes
    assert bits_per_byte(2 * math.log(2), 12, 8) == pytest.approx(3.0, rel=1e-12)
