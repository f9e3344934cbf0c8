"""AdamW, and Muon for the hidden matrices, as one optimizer with one state.

Muon is momentum whose update is made orthogonal by a few Newton-Schulz iterations
(kellerjordan.github.io/posts/muon), scaled so that AdamW's learning rate fits it (arXiv:2502.16982).
"""

import inspect
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from smollm.config.training import OptimizerConfig, OptimizerKind
from smollm.device.group import Group
from smollm.errors import CheckpointError
from smollm.model.sharding import is_sharded, local_parts, map_matrices, place_like

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)

_ITERATIONS_PER_GRAM = 3
"""Iterations that a Gram matrix serves. Rounding in bf16 makes some of its small eigenvalues negative, and each further
iteration multiplies those by up to 12."""


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Replace the singular values of each matrix by values near 1, keeping the singular vectors.

    Where one side is more than twice the other, most products are those of Gram matrices, which are smaller
    (tridao.me/blog/2026/gram-newton-schulz).

    Args:
        matrices: (..., rows, columns), any float dtype.
        steps: Newton-Schulz iterations; 5 bring the values to between about 0.7 and 1.2.
        dtype: to compute in; bfloat16 is precise enough.

    Returns:
        Same shape, in `dtype`.
    """
    short, long = sorted(matrices.shape[-2:])
    at_once = _ITERATIONS_PER_GRAM if long > 2 * short else 1
    # normalized before it is cast: float16 has no digits left for an update of 1e-7
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(dtype, memory_format=torch.contiguous_format).view(-1, *x.shape[-2:])
    for done in range(0, steps, at_once):
        x = _iterate(x, min(at_once, steps - done))
    return x.view(matrices.shape)


def _iterate(x: Tensor, times: int) -> Tensor:
    """Newton-Schulz: multiply `x`, (B, rows, columns), by a polynomial of its Gram matrix, `times` times."""
    is_wide = x.shape[-2] <= x.shape[-1]
    gram = x @ x.mT if is_wide else x.mT @ x  # the smaller of the two
    product = factor = _polynomial(gram)
    for _ in range(times - 1):
        gram = gram @ factor @ factor
        factor = _polynomial(gram)
        product = product @ factor
    return product @ x if is_wide else x @ product


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    values = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    values.diagonal(dim1=-2, dim2=-1).add_(a)
    return values


class _PartialOptimizer(torch.optim.Optimizer):
    """An optimizer of some of a model's parameters, with their moments.

    Torch wraps these two methods, and `step` of its own optimizers, in code that imports torch's compiler, which costs
    seconds at every start.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    moments: tuple[str, ...]
    """Names of the tensors that `state` holds for each parameter."""

    def _moments(self, parameter: nn.Parameter) -> list[Tensor]:
        """This process's part of the parameter's moments; zeros before the first step."""
        state = self.state[parameter]
        if not state:
            # the fused kernels want "step" on the parameter's device too
            scalar = torch.zeros((), device=parameter.device)
            state |= {name: scalar if name == "step" else torch.zeros_like(parameter) for name in self.moments}
        return local_parts(state[name] for name in self.moments)


class AdamW(_PartialOptimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101), by torch's fused kernels."""

    moments = ("exp_avg", "exp_avg_sq", "step")

    def __init__(
        self, groups: list[dict[str, Any]], config: OptimizerConfig, rate: float | Tensor, is_captured: bool
    ) -> None:
        self.config, self.is_captured = config, is_captured
        super().__init__(groups, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients, which are left as they are."""
        beta1, beta2 = self.config.betas
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            moments = [self._moments(p) for p in trained]
            adamw(
                local_parts(trained),
                local_parts(p.grad for p in trained),
                [average for average, _, _ in moments],
                [square for _, square, _ in moments],
                [],
                [step for _, _, step in moments],
                fused=True,
                capturable=self.is_captured,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.config.eps,
                maximize=False,
            )


class Muon(_PartialOptimizer):
    """Nesterov momentum with an orthogonal update, for matrices; those of one shape are updated together.

    Each process of a group orthogonalizes its share of the updates.
    """

    moments = ("momentum_buffer",)

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: OptimizerConfig,
        rate: float | Tensor,
        dtype: torch.dtype,
        group: Group | None = None,
    ) -> None:
        self.group = group or Group.single()
        defaults = {"lr": rate, "weight_decay": config.decays[0], "momentum": config.momentum}
        self.newton_schulz_steps, self.dtype = config.newton_schulz_steps, dtype
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        super().__init__([{"params": group} for group in by_shape.values()], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients, which are left as they are."""
        for group in self.param_groups:
            first = group["params"][0]
            parameters = local_parts(group["params"])
            gradients = local_parts(p.grad for p in group["params"] if p.grad is not None)
            assert len(gradients) == len(parameters), "every matrix has a gradient"
            buffers = [self._moments(p)[0] for p in group["params"]]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
            orthogonal = map_matrices(self._orthogonalize, updates, first, self.group).to(parameters[0].dtype)
            scale = 0.2 * max(first.shape) ** 0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if isinstance(group["lr"], Tensor):  # `alpha` must be a plain number
                torch._foreach_add_(parameters, list(orthogonal.mul_(group["lr"] * -scale)))
            else:
                torch._foreach_add_(parameters, list(orthogonal), alpha=-group["lr"] * scale)

    def _orthogonalize(self, matrices: Tensor) -> Tensor:
        return orthogonalize(matrices, self.newton_schulz_steps, self.dtype)


class Optimizer:
    """The optimizers of one model, with a state that is keyed by parameter name."""

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        dtype: torch.dtype = torch.float32,
        group: Group | None = None,
    ) -> None:
        """
        Args:
            model: on its device already.
            config: kind and settings.
            dtype: what Muon's orthogonalization computes in; states stay in float32.
            group: the processes that share Muon's work; by default this process alone.
        """
        self.kind = config.kind
        hidden, embeddings, norms = _split_parameters(model)
        decay, embedding_decay = config.decays
        groups = [
            {"params": embeddings, "weight_decay": embedding_decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        is_muon = config.kind is OptimizerKind.MUON
        if not is_muon:
            groups.append({"params": hidden, "weight_decay": decay})
        is_captured = all(p.is_cuda and not is_sharded(p) for p in model.parameters())
        peaks = [config.embedding_lr, config.lr] if is_muon else [config.lr]
        self._rate_ratios = [peak / config.lr for peak in peaks]
        """Each part's rate, relative to the one that is set."""
        # a tensor on the device, so that a captured step can be replayed with another rate
        rates = [torch.tensor(peak, device="cuda") if is_captured else peak for peak in peaks]
        self.parts: list[_PartialOptimizer] = [AdamW(groups, config, rates[0], is_captured)]
        if is_muon:
            self.parts.append(Muon(hidden, config, rates[1], dtype, group))
        owners = {p: part for part in self.parts for each in part.param_groups for p in each["params"]}
        self._owners = {name: (p, owners[p]) for name, p in model.named_parameters()}

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate: with AdamW of all parameters, with Muon of the hidden matrices.

        With Muon the other parameters have `rate * embedding_lr / lr`.
        """
        for part, ratio in zip(self.parts, self._rate_ratios, strict=True):
            current = part.param_groups[0]["lr"]
            if isinstance(current, Tensor):  # the same one in all groups of the part
                current.fill_(rate * ratio)
                continue
            for group in part.param_groups:
                group["lr"] = rate * ratio

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All moments, as ``<parameter name>.<moment>``, on the parameters' device and sharded as they are."""
        return {
            f"{name}.{moment}": value
            for name, (parameter, part) in self._owners.items()
            for moment, value in part.state.get(parameter, {}).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Overwrite all moments with what `state()` returned, unsharded.

        Raises:
            CheckpointError: it belongs to another kind of optimizer or another model.
        """
        expected = {f"{name}.{moment}" for name, (_, part) in self._owners.items() for moment in part.moments}
        if expected != state.keys():
            odd = sorted(expected ^ state.keys())
            raise CheckpointError(
                f"the checkpoint's optimizer state must fit {self.kind.value}, got {len(odd)} moments that differ, "
                f"the first is {odd[0]}; use the optimizer it was trained with"
            )
        for name, (parameter, part) in self._owners.items():
            part.state[parameter] = {
                moment: place_like(state[f"{name}.{moment}"], parameter) for moment in part.moments
            }


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The hidden matrices; embedding and output projection; the norms."""
    hidden, embeddings, norms = list[nn.Parameter](), list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            norms.append(parameter)
        else:
            (hidden if ".layers." in name else embeddings).append(parameter)
    return hidden, embeddings, norms
