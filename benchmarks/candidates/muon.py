"""Muon's update."""

from collections.abc import Callable
from functools import partial

import torch
from candidates.variant import CONFIG, DEVICE, DTYPE, MODEL, ON_GPU, Variant, distance

from smollm.model.llama import LlamaForCausalLM
from smollm.training import optim

NAMES = ("today", "a Gram matrix each iteration")


def muon(name: str) -> Variant:
    """Muon's step for all hidden matrices of the preset, and the orthogonalization of those of each shape."""
    if name != NAMES[0]:
        optim._ITERATIONS_PER_GRAM = 1
    torch.manual_seed(0)
    hidden, _, _ = optim._split_parameters(LlamaForCausalLM(MODEL).to(DEVICE))
    for parameter in hidden:
        parameter.grad = torch.randn_like(parameter)
    rate = torch.tensor(1e-6, device=DEVICE) if ON_GPU else 1e-6
    steps, optimizer = CONFIG.pretrain.optimizer.newton_schulz_steps, CONFIG.pretrain.optimizer
    whole = optim.Muon(hidden, optimizer, rate, DTYPE)
    operations: dict[str, Callable[[], object]] = {}
    stacks = [torch.stack([p.grad for p in group["params"]]) for group in whole.param_groups]
    for stack in stacks:
        operations["{} of {}x{}".format(*stack.shape)] = partial(optim.orthogonalize, stack, steps, DTYPE)
    operations["the whole update"] = whole.step

    def errors() -> dict[str, float]:
        found = {}
        for stack in stacks:
            exact = optim.orthogonalize(stack[:4], steps, torch.float32)
            found["{1}x{2}".format(*stack.shape)] = distance(optim.orthogonalize(stack[:4], steps, DTYPE), exact)
        return found

    return Variant(operations, errors)
