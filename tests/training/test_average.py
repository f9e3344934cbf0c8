"""The moving average of the weights."""

import torch

from smollm.config.model import ModelConfig
from smollm.model.llama import LlamaForCausalLM
from smollm.training.average import WeightAverage


def set_all(model: LlamaForCausalLM, value: float) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(value)


def test_the_average_is_what_the_definition_says(model_config: ModelConfig) -> None:
    model = LlamaForCausalLM(model_config)
    set_all(model, 0.0)
    average = WeightAverage(model, decay=0.3)
    expected, weights = 0.0, [1.0, -2.0, 5.0, 0.5]
    decays = [2 / 11, 3 / 12, 0.3, 0.3]  # (1 + t) / (10 + t) is above the decay from step 3 on
    for step, (value, decay) in enumerate(zip(weights, decays, strict=True), start=1):
        set_all(model, value)
        average.update(step)
        expected = decay * expected + (1 - decay) * value
    state = average.state()
    assert state.keys() == model.weights().keys()
    for name, value in state.items():
        assert torch.allclose(value, torch.full_like(value, expected)), name
        assert value.dtype == torch.float32


def test_the_model_has_the_average_for_as_long_as_it_is_in_use(model_config: ModelConfig) -> None:
    model = LlamaForCausalLM(model_config)
    average = WeightAverage(model, decay=0.5)
    first = {name: value.detach().clone() for name, value in model.weights().items()}
    set_all(model, 0.1)
    places = [weight.data_ptr() for weight in model.parameters()]
    with average.in_use():
        for name, value in model.weights().items():
            assert torch.equal(value, first[name]), name
        assert [weight.data_ptr() for weight in model.parameters()] == places
    assert all(torch.equal(value, torch.full_like(value, 0.1)) for value in model.parameters())
    assert all(torch.equal(value, first[name]) for name, value in average.state().items())
