"""Muon's products, and an MLP's first ones.

Legend: R rows, H hidden, F MLP width.
"""

from collections.abc import Callable
from functools import partial

import torch
from candidates.variant import BATCH, CONFIG, DEVICE, DTYPE, MODEL, ON_GPU, TIME, Choice, Variant, blocks, distance
from torch import Tensor
from torch.nn import functional

from smollm.model.llama import LlamaForCausalLM
from smollm.training import optim


def muon(name: str) -> Variant:
    """Muon's step for all hidden matrices of the preset, and the orthogonalization of those of each shape."""
    choices, is_own = list[Choice](), name.startswith("own")
    if is_own:
        from candidates import symmetric_product

        optim.orthogonalize = symmetric_product.orthogonalize
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
    if is_own:
        values = blocks(
            "ROWS COLUMNS DEPTH", (64, 64, 64, 4, 4), (128, 64, 64, 4, 4), (128, 64, 64, 8, 4), (128, 128, 64, 8, 3),
            (64, 64, 128, 4, 3),
        )  # fmt: skip
        choices.append(Choice(symmetric_product.BLOCKS, values, "the whole update"))

    def errors() -> dict[str, float]:
        found = {}
        for stack in stacks:
            exact = _orthogonalize(stack[:4], steps, torch.float32)
            found["{1}x{2}".format(*stack.shape)] = distance(optim.orthogonalize(stack[:4], steps, DTYPE), exact)
        return found

    return Variant(operations, errors, choices)


_orthogonalize = optim.orthogonalize
"""Today's, whatever a variant puts in its place."""


def gated(name: str) -> Variant:
    """Gate and up projection of all tokens of a step, and SwiGLU."""
    choices = list[Choice]()
    rows, hidden, width = BATCH * TIME, MODEL.hidden_size, MODEL.intermediate_size
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(rows, hidden, generator=generator, device=DEVICE).to(DTYPE)
    inner = (torch.randn(2 * width, hidden, generator=generator, device=DEVICE) * hidden**-0.5).to(DTYPE)
    if name.startswith("today"):
        from smollm.model.kernels import _BLOCK, _swiglu

        def forward() -> tuple[Tensor, ...]:
            packed = x @ inner.mT
            between = torch.empty(rows, width, dtype=DTYPE, device=DEVICE)
            _swiglu[(rows, -(-width // _BLOCK))](packed, between, width, _BLOCK)
            return packed, between

    elif name.startswith("the product"):

        def forward() -> tuple[Tensor, ...]:
            return (x @ inner.mT,)

    else:
        from candidates import gated_product

        programs = torch.cuda.get_device_properties(DEVICE).multi_processor_count if ON_GPU else 4

        def forward() -> tuple[Tensor, ...]:
            return gated_product.gated_product(x, inner, programs)

        values = blocks(
            "ROWS COLUMNS DEPTH", (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 64, 64, 4, 4), (128, 64, 64, 8, 4),
            (256, 64, 64, 8, 3),
        )  # fmt: skip
        choices.append(Choice(gated_product.BLOCKS, values, "forward"))

    def errors() -> dict[str, float]:
        packed = x[:4096].float() @ inner.float().mT
        gate, up = packed.chunk(2, dim=1)
        expected = packed, functional.silu(gate) * up
        names = ("product", "SwiGLU")
        return {name: distance(one[:4096], other) for name, one, other in zip(names, forward(), expected, strict=False)}

    return Variant({"forward": forward}, errors, choices)
