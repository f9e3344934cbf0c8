"""Both optimizers against torch's own, and their state."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from smollm.config.model import ModelConfig
from smollm.config.training import OptimizerConfig, OptimizerKind
from smollm.errors import CheckpointError
from smollm.model.llama import LlamaForCausalLM
from smollm.training.optim import Muon, Optimizer, orthogonalize

MUON = OptimizerConfig(
    kind=OptimizerKind.MUON,
    lr=0.01,
    embedding_lr=0.01,
    weight_decay=0.1,
    weight_decay_epochs=None,
    embedding_weight_decay=None,
    betas=(0.9, 0.95),
    eps=1e-8,
    momentum=0.9,
    newton_schulz_steps=5,
)
ADAMW = replace(MUON, kind=OptimizerKind.ADAMW)
KINDS = pytest.mark.parametrize("config", [MUON, ADAMW], ids=["muon", "adamw"])


def build_model(config: ModelConfig, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer | Optimizer, steps: range) -> None:
    """Steps with random gradients that depend on the step and the parameter's name alone."""
    parts = optimizer.parts if isinstance(optimizer, Optimizer) else [optimizer]
    for step in steps:
        for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(1000 * step + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for part in parts:
            part.step()


def copy_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_equal(ones: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        assert torch.equal(one, others[name]), name


def hidden_matrices(model: LlamaForCausalLM) -> set[str]:
    return {name for name in model.weights() if name.endswith("_proj.weight")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_muon_takes_the_steps_of_torchs_muon(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes = [(24, 40), (40, 24), (32, 32), (24, 40), (24, 72), (72, 24)]  # two of one shape are done together
    start = [torch.randn(shape) for shape in shapes]
    ours = nn.ParameterList(value.clone() for value in start)
    theirs = nn.ParameterList(value.clone() for value in start)
    one = Muon(list(ours), MUON, MUON.lr, dtype)
    other = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw", ns_steps=5
    )
    for step in range(4):
        before = [p.detach().clone() for p in theirs]
        for mine, reference, value in zip(ours, theirs, before, strict=True):
            mine.data.copy_(value)  # so that each step is compared by itself
            torch.testing.assert_close(mine, reference, rtol=0, atol=0)
        take_steps(ours, one, range(step, step + 1))
        take_steps(theirs, other, range(step, step + 1))
        for mine, reference, value in zip(ours, theirs, before, strict=True):
            torch.testing.assert_close(
                one.state[mine]["momentum_buffer"], other.state[reference]["momentum_buffer"], rtol=0, atol=0
            )
            # Torch's iterations run in bfloat16, whatever they are given: 15 products, each rounded to
            # 2**-9 = 0.002 of a value and partly magnified by the polynomial's slope of up to 3.44, add
            # up to a few hundredths of an update. (The formula itself is tested exactly below.) Without
            # Nesterov the distance is 0.3, with another scale or sign more.
            distance = (mine - reference).norm() / (reference - value).norm()
            assert distance.item() < 0.05, (step, tuple(mine.shape))


@pytest.mark.parametrize(("steps", "columns"), [(5, 20), (5, 40), (1, 40), (7, 40)])
def test_muon_in_float32_is_the_polynomial_applied_to_the_singular_values(steps: int, columns: int) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(12, columns))
    start = parameter.detach().double()
    optimizer = Muon([parameter], replace(MUON, newton_schulz_steps=steps), MUON.lr, torch.float32)
    take_steps(nn.ParameterList([parameter]), optimizer, range(1))
    # the first step: the momentum is 0.1 of the gradient, Nesterov's update 0.1 + 0.9 * 0.1 of it,
    # and the iterations forget the scale
    u, values, v = torch.linalg.svd(parameter.grad.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = start * (1 - 0.01 * 0.1) - 0.01 * 0.2 * columns**0.5 * (u * values) @ v
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (192, 64)], ids=str)
def test_in_bfloat16_rounding_of_small_singular_values_is_not_magnified(shape: tuple[int, int]) -> None:
    """Their Gram matrix has values below the rounding error of the largest one."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(2, *shape), full_matrices=False)
    matrices = (u / torch.arange(1, 65)) @ v
    exact = orthogonalize(matrices, 5, torch.float64)
    error = orthogonalize(matrices, 5, torch.bfloat16) - exact
    assert error.norm() / exact.norm() < 0.1  # 1 and 11 with one Gram matrix for all iterations


def test_adamw_takes_the_steps_of_torchs_adamw(model_config: ModelConfig) -> None:
    config = replace(model_config, tie_word_embeddings=False)
    ours, theirs = build_model(config), build_model(config)
    named = theirs.weights()
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
    )
    take_steps(ours, Optimizer(ours, ADAMW), range(5))
    take_steps(theirs, reference, range(5))
    for name, value in ours.weights().items():
        torch.testing.assert_close(value, named[name], rtol=1e-5, atol=1e-6, msg=name)


def test_muon_moves_the_hidden_matrices_and_adamw_the_rest(model_config: ModelConfig) -> None:
    config = replace(model_config, tie_word_embeddings=False)
    model, adamw_alone = build_model(config), build_model(config)
    optimizer = Optimizer(model, MUON)
    take_steps(model, optimizer, range(3))
    take_steps(adamw_alone, Optimizer(adamw_alone, ADAMW), range(3))
    same = {name for name, value in model.weights().items() if torch.equal(value, adamw_alone.weights()[name])}
    assert same == model.weights().keys() - hidden_matrices(model)
    muon = {name.removesuffix(".momentum_buffer") for name in optimizer.state() if name.endswith(".momentum_buffer")}
    assert muon == hidden_matrices(model)
    assert len(muon) == 7 * config.num_hidden_layers


@KINDS
def test_weight_decay_shrinks_the_matrices_and_leaves_the_norms(
    model_config: ModelConfig, config: OptimizerConfig
) -> None:
    model = build_model(model_config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # nothing but the decay is left
    before = copy_of(model.weights())
    for part in Optimizer(model, config).parts:
        part.step()
    for name, value in model.weights().items():
        expected = before[name] if value.ndim == 1 else before[name] * (1 - 0.01 * 0.1)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=1e-9, msg=name)


@KINDS
def test_embedding_and_output_projection_can_have_a_weight_decay_of_their_own(
    model_config: ModelConfig, config: OptimizerConfig
) -> None:
    model = build_model(replace(model_config, tie_word_embeddings=False))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = copy_of(model.weights())
    for part in Optimizer(model, replace(config, embedding_weight_decay=0.3)).parts:
        part.step()
    decays = {name: 0.1 if name in hidden_matrices(model) else 0.3 for name, value in before.items() if value.ndim == 2}
    assert sorted(decays.values())[-3:] == [0.1, 0.3, 0.3]
    for name, value in model.weights().items():
        expected = before[name] * (1 - 0.01 * decays.get(name, 0.0))
        torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=1e-9, msg=name)


@KINDS
def test_the_learning_rate_that_is_set_is_the_one_used(model_config: ModelConfig, config: OptimizerConfig) -> None:
    model, direct = build_model(model_config), build_model(model_config)
    optimizer = Optimizer(model, config)
    optimizer.set_learning_rate(0.003)
    take_steps(model, optimizer, range(2))
    take_steps(direct, Optimizer(direct, replace(config, lr=0.003, embedding_lr=0.003)), range(2))
    assert_equal(model.weights(), direct.weights())


def test_embedding_and_norms_have_a_rate_of_their_own_beside_muon(model_config: ModelConfig) -> None:
    model, alike = build_model(model_config), build_model(model_config)
    before = copy_of(model.weights())
    config = replace(MUON, weight_decay=0.0, embedding_lr=0.02)
    optimizer = Optimizer(model, config)
    optimizer.set_learning_rate(0.005)  # half of its peak, so that the embedding's is half of its own
    take_steps(model, optimizer, range(1))
    other = Optimizer(alike, replace(config, lr=0.005, embedding_lr=0.005))
    take_steps(alike, other, range(1))
    for name, value in model.weights().items():
        moved, less = value - before[name], alike.weights()[name] - before[name]
        share = 1 if name in hidden_matrices(model) else 2
        torch.testing.assert_close(moved, share * less, rtol=1e-4, atol=1e-7, msg=name)


def test_rates_that_a_captured_step_reads_are_written_in_place_once(model_config: ModelConfig) -> None:
    optimizer = Optimizer(build_model(model_config), replace(MUON, embedding_lr=0.02))
    rates = [torch.tensor(0.0), torch.tensor(0.0)]
    for part, rate in zip(optimizer.parts, rates, strict=True):
        for group in part.param_groups:
            group["lr"] = rate
    optimizer.set_learning_rate(0.005)
    assert [rate.item() for rate in rates] == pytest.approx([0.01, 0.005])
    assert [rate._version for rate in rates] == [1, 1]


def test_adamw_alone_has_one_rate(model_config: ModelConfig) -> None:
    model, alike = build_model(model_config), build_model(model_config)
    take_steps(model, Optimizer(model, ADAMW), range(2))
    take_steps(alike, Optimizer(alike, replace(ADAMW, embedding_lr=0.5)), range(2))
    assert_equal(model.weights(), alike.weights())


@KINDS
def test_zeroing_leaves_no_gradient(model_config: ModelConfig, config: OptimizerConfig) -> None:
    model = build_model(model_config)
    optimizer = Optimizer(model, config)
    take_steps(model, optimizer, range(1))
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@KINDS
def test_a_restored_optimizer_takes_the_same_next_steps_bit_for_bit(
    model_config: ModelConfig, config: OptimizerConfig
) -> None:
    model = build_model(model_config)
    optimizer = Optimizer(model, config)
    take_steps(model, optimizer, range(3))
    weights, state = copy_of(model.weights()), copy_of(optimizer.state())
    take_steps(model, optimizer, range(3, 6))

    restored = build_model(model_config, seed=1)
    restored.load_state_dict(weights, strict=False)
    again = Optimizer(restored, config)
    again.load_state(state)
    assert_equal(again.state(), state)
    take_steps(restored, again, range(3, 6))
    assert_equal(restored.weights(), model.weights())
    assert_equal(again.state(), optimizer.state())


def test_loading_replaces_the_moments_and_keeps_no_hold_on_the_given_ones(model_config: ModelConfig) -> None:
    model = build_model(model_config)
    optimizer = Optimizer(model, MUON)
    take_steps(model, optimizer, range(2))
    state = copy_of(optimizer.state())
    take_steps(model, optimizer, range(2, 4))
    optimizer.load_state(state)
    assert_equal(optimizer.state(), state)
    kept = copy_of(state)
    take_steps(model, optimizer, range(4, 5))
    assert_equal(state, kept)


def state_after_a_step(model_config: ModelConfig, config: OptimizerConfig) -> dict[str, Tensor]:
    model = build_model(model_config)
    optimizer = Optimizer(model, config)
    take_steps(model, optimizer, range(1))
    return optimizer.state()


@pytest.mark.parametrize(("config", "other"), [(MUON, ADAMW), (ADAMW, MUON)], ids=["muon", "adamw"])
def test_the_state_of_the_other_optimizer_is_refused_by_its_first_odd_moment(
    model_config: ModelConfig, config: OptimizerConfig, other: OptimizerConfig
) -> None:
    state = state_after_a_step(model_config, other)
    with pytest.raises(CheckpointError) as caught:
        Optimizer(build_model(model_config), config).load_state(state)
    # 14 hidden matrices, each with 3 moments of AdamW's on one side and 1 of Muon's on the other
    assert str(caught.value) == (
        f"the checkpoint's optimizer state must fit {config.kind.value}, got 56 moments that differ, the first is "
        "model.layers.0.mlp.down_proj.weight.exp_avg; use the optimizer it was trained with"
    )


def test_the_state_of_another_model_is_refused(model_config: ModelConfig) -> None:
    state = state_after_a_step(replace(model_config, num_hidden_layers=3), MUON)
    with pytest.raises(CheckpointError, match=r"first is model\.layers\.2\.input_layernorm\.weight\.exp_avg;"):
        Optimizer(build_model(model_config), MUON).load_state(state)


def test_a_refused_state_changes_nothing(model_config: ModelConfig) -> None:
    model = build_model(model_config)
    optimizer = Optimizer(model, MUON)
    take_steps(model, optimizer, range(1))
    before = copy_of(optimizer.state())
    with pytest.raises(CheckpointError):
        optimizer.load_state({})
    assert_equal(optimizer.state(), before)


def test_steps_import_no_compiler() -> None:
    """Torch's own optimizers do, seconds of each start; in a process where nothing else has."""
    code = """
import sys, torch
from test_optim import ADAMW, MUON, Optimizer
for config in (ADAMW, MUON):
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)]), "norm": torch.nn.LayerNorm(4)})
    optimizer = Optimizer(torch.nn.ModuleDict({"model": model}), config)
    for part in optimizer.parts:
        for group in part.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        part.step()
    optimizer.zero_grad()
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        capture_output=True,
    )
    assert done.stdout == "[]\n", done.stderr
