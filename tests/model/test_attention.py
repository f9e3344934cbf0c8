"""Attention with all scores at once against torch's kernel, and when it is used."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from support.models import difference, random_ids, random_model
from torch import Tensor
from torch.nn import functional

from smollm.config.model import ModelConfig
from smollm.model import llama
from smollm.model.llama import Execution, KeyValueCache, attend_at_once, document_mask

LONGEST = 512


def random_heads(dtype: torch.dtype, groups: int) -> list[Tensor]:
    """Queries, keys and values (2, heads, 24, 16) of 2 key-value heads, in the layout that projections leave."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 24, heads, 16) for heads in (2 * groups, 2, 2)]
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def with_gradients(mixed: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1)).to(mixed.dtype)
    return [mixed.detach(), *torch.autograd.grad(mixed, inputs, weights)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
def test_output_and_gradients_are_those_of_torchs_attention(groups: int, masked: bool) -> None:
    inputs = random_heads(torch.float64, groups)
    mask = document_mask(torch.arange(48).view(2, 24) % 7, end=3) if masked else None
    expected = functional.scaled_dot_product_attention(*inputs, mask, is_causal=not masked, enable_gqa=True)
    ours = attend_at_once(inputs[0], inputs[1], inputs[2], mask)
    for one, other in zip(with_gradients(ours, inputs), with_gradients(expected, inputs), strict=True):
        # its softmax is in float32
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_in_bfloat16_it_is_as_precise_as_torchs_attention() -> None:
    exact = random_heads(torch.float64, 3)
    exact = [value.detach().bfloat16().double().requires_grad_() for value in exact]
    half = [value.detach().bfloat16().requires_grad_() for value in exact]
    results = [
        with_gradients(functional.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True), inputs)
        for inputs in (exact, half)
    ]
    ours = with_gradients(attend_at_once(half[0], half[1], half[2], None), half)
    for mine, torchs, reference in zip(ours, results[1], results[0], strict=True):
        errors = [float((value.double() - reference).norm() / reference.norm()) for value in (mine, torchs)]
        assert errors[0] < 2 * errors[1] < 0.02


@pytest.mark.parametrize(
    ("time", "half", "cached", "used"),
    [
        (LONGEST, True, False, True),
        (LONGEST + 1, True, False, False),
        (16, False, False, False),
        (16, True, True, False),
    ],
    ids=["short", "long", "float32", "with a cache"],
)
def test_a_cpu_computes_short_sequences_in_bfloat16_at_once(
    model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, time: int, half: bool, cached: bool, used: bool
) -> None:
    calls = []
    monkeypatch.setattr(llama, "attend_at_once", lambda *args: calls.append(args) or attend_at_once(*args))
    config = replace(model_config, max_position_embeddings=LONGEST + 1)
    model, device = random_model(config), torch.device("cpu")
    cache = KeyValueCache.empty(config, 1, time, device, torch.bfloat16) if cached else None
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        model(random_ids(config, 1, time), cache)
    assert len(calls) == (config.num_hidden_layers if used else 0)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize("end", [None, 7], ids=["causal", "documents"])
def test_compiled_in_bfloat16_the_model_has_the_loss_and_gradients_of_float32(
    model_config: ModelConfig, end: int | None
) -> None:
    model = random_model(model_config, std=0.1)
    ids, targets = random_ids(model_config, 4, 16).split(2)
    losses, gradients = [], []
    for compiled in (False, True):
        model.execute_as(Execution(document_end=end, compiled=compiled))
        with torch.autocast("cpu", torch.bfloat16, enabled=compiled):
            losses.append(model.loss(ids, targets))
        gradients.append(torch.autograd.grad(losses[-1], list(model.parameters())))
    assert difference(losses[0], losses[1]) <= 1e-2
    for exact, half in zip(*gradients, strict=True):
        assert (half - exact).norm() <= 0.05 * exact.norm()
