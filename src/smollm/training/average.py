"""An exponential moving average of the weights, often better than the weights of any one step (arXiv:1803.05407)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from smollm.model.llama import LlamaForCausalLM
from smollm.model.sharding import local_parts, place_like


class WeightAverage:
    """The average of a model's weights over the steps of a stage, in float32, sharded as they are.

    After step t, counted from 1: average += (1 - d) * (weights - average), d being the smaller of `decay` and
    (1 + t) / (10 + t), so that the initial weights are soon forgotten.
    """

    def __init__(self, model: LlamaForCausalLM, decay: float) -> None:
        """
        Args:
            model: its present weights are the initial average.
            decay: weight of the old average at each update.
        """
        self._model, self._decay = model, decay
        self._average = {name: weight.detach().clone() for name, weight in model.weights().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after step `step` of the stage."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._both(), 1 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the model has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state(self) -> dict[str, Tensor]:
        """The average by name of the weight, on its device and sharded as it is."""
        return self._average

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Overwrite the average with what `state()` returned, unsharded."""
        weights = self._model.weights()
        self._average = {name: place_like(state[name], weight) for name, weight in weights.items()}

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weight in zip(*self._both(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _both(self) -> tuple[list[Tensor], list[Tensor]]:
        """This process's part of the average and of the weights."""
        weights = self._model.weights()
        return local_parts(self._average.values()), local_parts(weights[name] for name in self._average)
