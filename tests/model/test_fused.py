"""The kernels against the plain model: interpreted on a CPU (where Triton is installed), real on a GPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from smollm.config.model import ModelConfig
from smollm.config.runtime import Precision
from smollm.device.hardware import Hardware
from smollm.model import fused
from smollm.model.dropout import Dropout
from smollm.model.llama import IGNORED, Execution, KeyValueCache, LlamaForCausalLM

pytest.importorskip("triton")

from smollm.model import kernels, linear_cross_entropy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"
FUSED = Execution(kernels=fused.FusedKernels())


@pytest.fixture(autouse=True)
def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact float32 products to compare with, and several slices of logits; on a CPU the one product it lacks."""
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(linear_cross_entropy, "_LOGITS_ROWS", 8)
    if INTERPRETED:

        def addmm(total: Tensor, one: Tensor, other: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> Tensor:
            assert out is total
            return total.add_(one.to(out_dtype) @ other.to(out_dtype))

        monkeypatch.setattr(torch, "addmm", addmm)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def distance(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    """Of a sum over all outputs, each number with another weight."""
    weights = [random(*out.shape, seed=9 + index) for index, out in enumerate(outputs)]
    total = sum((out.float() * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("adds", [True, False])
def test_the_norm_of_a_sum_and_its_gradient(adds: bool) -> None:
    x, weight = random(37, 96).requires_grad_(), (1 + 0.3 * random(96, seed=1)).requires_grad_()
    added = random(37, 96, seed=2, dtype=torch.bfloat16).requires_grad_()
    inputs = [x, weight, added] if adds else [x, weight]
    total = x + added if adds else x * 1
    expected = (total, functional.rms_norm(total, (96,), weight, 1e-5))
    ours = kernels.AddNorm.apply(x, added if adds else None, weight, 1e-5)
    assert torch.equal(ours[0], expected[0])
    assert ours[1].dtype == torch.bfloat16
    assert distance(ours[1], expected[1]) < 5e-3
    for one, other in zip(gradients(ours, inputs), gradients(expected, inputs), strict=True):
        assert distance(one, other) < 5e-3


def test_the_mean_cross_entropy_of_slices_and_its_gradient() -> None:
    x = random(21, 96, dtype=torch.bfloat16).requires_grad_()
    weight = (0.3 * random(1000, 96, seed=1)).requires_grad_()
    targets = torch.arange(21, device=DEVICE) * 47
    targets[[0, 3, 20]] = IGNORED
    exact = functional.cross_entropy(functional.linear(x.float(), weight), targets, ignore_index=IGNORED)
    ours, loss = linear_cross_entropy.LinearCrossEntropy.apply(x, weight, targets, IGNORED)
    assert torch.equal(loss, ours)
    assert abs(float(ours - exact)) < 5e-3
    for one, other in zip(
        torch.autograd.grad(3 * ours, (x, weight)), torch.autograd.grad(3 * exact, (x, weight)), strict=True
    ):
        assert distance(one, other) < 1e-2
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy.LinearCrossEntropy.apply(x, weight, targets, IGNORED)[0], ours)


def test_smoothed_labels_spread_over_the_ids_that_a_tokenizer_has() -> None:
    x = random(21, 96, dtype=torch.bfloat16).requires_grad_()
    weight = (0.3 * random(1000, 96, seed=1)).requires_grad_()
    targets = torch.arange(21, device=DEVICE) * 47
    exact = functional.linear(x.float(), weight)
    wanted = 0.8 * functional.one_hot(targets, 1000) + 0.2 * (torch.arange(1000, device=DEVICE) < 990) / 990
    objective = -(wanted * exact.log_softmax(-1)).sum(-1).mean()
    ours, loss = linear_cross_entropy.LinearCrossEntropy.apply(x, weight, targets, IGNORED, 0.2, 990)
    assert abs(float(ours - objective)) < 5e-3
    assert abs(float(loss - functional.cross_entropy(exact, targets))) < 5e-3
    assert not loss.requires_grad
    for one, other in zip(
        torch.autograd.grad(3 * ours, (x, weight)), torch.autograd.grad(3 * objective, (x, weight)), strict=True
    ):
        assert distance(one, other) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_zeroes_what_it_zeroes_in_the_plain_model(dtype: torch.dtype) -> None:
    batch, time, width = 3, 50, 96
    seeds = torch.tensor([7, 2**31 - 1, 0], device=DEVICE)
    dropout = Dropout.of(seeds, 0.25, torch.zeros(batch, time, device=DEVICE), places=4)
    x = random(batch * time, width, dtype=dtype).requires_grad_()
    ours, plain = kernels.Drop.apply(x, dropout, 2), dropout(x.view(batch, time, width), 2).flatten(0, 1)
    assert torch.equal(ours == 0, plain == 0)
    rounding = 2**-6 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(ours, plain, rtol=rounding, atol=0)
    one, other = (gradients((out,), [x])[0] for out in (ours, plain))
    torch.testing.assert_close(one, other, rtol=rounding, atol=0)


def test_a_loss_that_is_not_a_number_stays_one() -> None:
    x = random(9, 96, dtype=torch.bfloat16)
    x[4] = float("nan")
    targets = torch.zeros(9, dtype=torch.long, device=DEVICE)
    assert linear_cross_entropy.LinearCrossEntropy.apply(x, random(50, 96), targets, IGNORED)[0].isnan()


def build(config: ModelConfig) -> LlamaForCausalLM:
    """All weights random, those of the norms too."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    return model.to(DEVICE)


def loss_and_gradients(model: LlamaForCausalLM, loss: Callable[[], Tensor]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    return value.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("change", [{}, {"num_key_value_heads": 3}, {"tie_word_embeddings": False}], ids=str)
def test_loss_and_gradients_are_as_exact_as_those_of_the_plain_model(
    wide_config: ModelConfig, change: dict[str, int]
) -> None:
    model = build(replace(wide_config, **change))  # type: ignore[arg-type]
    ids, targets = torch.randint(320, (2, 3, 13), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    targets[1, 5:] = IGNORED

    def loss() -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return model.loss(ids, targets)

    exact_loss, exact = loss_and_gradients(model, lambda: model.loss(ids, targets))
    plain_loss, plain = loss_and_gradients(model, loss)
    model.execute_as(FUSED)
    ours_loss, ours = loss_and_gradients(model, loss)
    assert abs(ours_loss - exact_loss) < 0.01
    assert abs(plain_loss - exact_loss) < 0.01
    assert ours.keys() == exact.keys()
    # the interpreter cuts off what a GPU rounds
    allowed = 2.0 if INTERPRETED else 1.25
    for name in exact:
        assert distance(ours[name], exact[name]) < allowed * distance(plain[name], exact[name]) + 1e-3, name
    with torch.no_grad():
        assert loss().item() == ours_loss
    model.execute_as(Execution())
    assert loss().item() == plain_loss


def test_dropout_and_smoothed_labels_are_as_exact_as_those_of_the_plain_model(wide_config: ModelConfig) -> None:
    model = build(wide_config)
    ids, targets = torch.randint(320, (2, 3, 13), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    seeds = torch.tensor([5, 6, 7], device=DEVICE)
    plain_execution = Execution(dropout=0.2, label_smoothing=0.5, smoothed_ids=300)
    values = []

    def objective() -> Tensor:
        value, loss = model.training_loss(ids, targets, seeds)
        values.append(float(loss))
        return value

    def rounded() -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return objective()

    model.execute_as(plain_execution)
    exact_objective, exact = loss_and_gradients(model, objective)
    _, plain = loss_and_gradients(model, rounded)
    model.execute_as(replace(plain_execution, kernels=fused.FusedKernels()))
    ours_objective, ours = loss_and_gradients(model, rounded)
    assert abs(ours_objective - exact_objective) < 0.01
    assert abs(values[2] - values[0]) < 0.01
    assert abs(values[0] - exact_objective) > 0.05
    allowed = 2.0 if INTERPRETED else 1.25
    for name in exact:
        assert distance(ours[name], exact[name]) < allowed * distance(plain[name], exact[name]) + 1e-3, name
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        kept = model.loss(ids, targets).item()
        model.execute_as(FUSED)
        assert model.loss(ids, targets).item() == kept


def test_logits_with_the_cache_equal_those_of_the_plain_model(wide_config: ModelConfig) -> None:
    model = build(wide_config)
    ids = torch.randint(320, (2, 9), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with torch.no_grad():
        expected = model(ids)
        model.execute_as(FUSED)
        cache = KeyValueCache.empty(wide_config, 2, 12, DEVICE, torch.bfloat16)
        parts = [model(ids[:, :4], cache)]
        parts += [model(ids[:, position : position + 1], cache) for position in range(4, 9)]
    assert cache.length == 9
    assert distance(torch.cat(parts, dim=1), expected) < 0.03


def test_what_the_kernels_serve(wide_config: ModelConfig) -> None:
    gpu = Hardware(torch.device("cuda"), Precision.BF16, compile=True, name="a GPU")
    assert fused.fits(wide_config, gpu)
    assert not fused.fits(wide_config, replace(gpu, device=torch.device("cpu")))
    assert not fused.fits(wide_config, replace(gpu, precision=Precision.FP16))
    assert not fused.fits(wide_config, replace(gpu, compile=False))
    assert not fused.fits(replace(wide_config, num_attention_heads=4), gpu)  # heads of 24
