"""The ways a model can be executed: compiled, recomputed, with dropout, label smoothing or document masks."""

import shutil
from dataclasses import replace

import pytest
import torch
from support.models import difference, random_ids, random_model
from torch.nn import functional

from smollm.config.model import ModelConfig
from smollm.model.dropout import Dropout
from smollm.model.llama import Block, Execution, KeyValueCache, LlamaForCausalLM

LENGTHS = [[7, 8, 9], [1, 1, 22]]
"""Of the documents in two sequences."""


def test_masked_documents_are_as_if_each_were_alone(model_config: ModelConfig) -> None:
    end = 5
    model = random_model(model_config)
    ids = torch.where(random_ids(model_config, 2, 24) == end, 6, random_ids(model_config, 2, 24))
    ids[0, [6, 14]] = end
    ids[1, [0, 1, 23]] = end  # two without text, and one that ends with the sequence
    with torch.no_grad():
        plain = model(ids)
        alone = [[model(part[None]) for part in ids[row].split(sizes)] for row, sizes in enumerate(LENGTHS)]
        model.execute_as(Execution(document_end=end))
        masked = model(ids)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
    for row, parts in enumerate(alone):
        assert difference(masked[row], torch.cat(parts, 1)[0]) <= 1e-5
    assert difference(masked[0, :7], plain[0, :7]) <= 1e-5
    for position in range(8, 24):
        assert difference(masked[0, position], plain[0, position]) > 1e-3, position
    expected = functional.cross_entropy(masked[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert difference(loss, expected) <= 1e-5


def test_sampling_knows_no_documents(model_config: ModelConfig) -> None:
    model = random_model(model_config)
    ids = random_ids(model_config, 1, 8)
    model.execute_as(Execution(document_end=int(ids[0, 3])))
    caches = [KeyValueCache.empty(model_config, 1, 8, ids.device, torch.float32) for _ in range(2)]
    with torch.no_grad():
        seen = model(ids, caches[0])
        model.execute_as(Execution())
        assert torch.equal(seen, model(ids, caches[1]))


def test_a_compiled_model_that_is_executed_plainly_again_is_not_compiled(model_config: ModelConfig) -> None:
    model = random_model(model_config)
    ids, targets = random_ids(model_config, 4, 16).split(2)
    expected = model.loss(ids, targets)
    model.execute_as(Execution(compiled=True))
    torch.compiler.reset()  # nothing that another test compiled is found
    with torch.compiler.set_stance("fail_on_recompile"):
        with pytest.raises(RuntimeError):
            model.loss(ids, targets)
        model.execute_as(Execution())
        assert torch.equal(model.loss(ids, targets), expected)


SEEDS = torch.tensor([3, 141592653])


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "execution",
    [Execution(), Execution(document_end=7), Execution(dropout=0.3, label_smoothing=0.2, smoothed_ids=300)],
    ids=["plain", "masked", "regularized"],
)
def test_the_compiled_model_has_the_same_loss_and_gradients(execution: Execution, model_config: ModelConfig) -> None:
    model = random_model(model_config)
    model.execute_as(execution)
    ids, targets = random_ids(model_config, 4, 16).split(2)
    expected = model.loss(ids, targets)
    objective = model.training_loss(ids, targets, SEEDS)[0]
    objective.backward()
    gradients = {name: parameter.grad for name, parameter in model.weights().items()}
    model.zero_grad()
    model.execute_as(replace(model.execution, compiled=True))
    compiled_objective = model.training_loss(ids, targets, SEEDS)[0]
    compiled_objective.backward()
    assert difference(compiled_objective, objective) <= 1e-4
    for name, parameter in model.weights().items():
        assert difference(parameter.grad, gradients[name]) <= 1e-4, name
    with torch.compiler.set_stance("fail_on_recompile"):
        assert difference(model.loss(ids, targets), expected) <= 1e-4


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradient(dropout: float, model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(model_config)
    inputs, targets = torch.randint(320, (2, 2, 16))
    gradients = []
    for recomputes in (False, True):
        model.execute_as(Execution(recompute_activations=recomputes, dropout=dropout))
        seen = 0

        def count(*_: object) -> None:
            nonlocal seen
            seen += 1

        with model.model.layers[0].register_forward_pre_hook(count):
            model.training_loss(inputs, targets, SEEDS)[0].backward()  # type: ignore[no-untyped-call]
        assert seen == 1 + recomputes
        gradients.append({name: value.grad for name, value in model.weights().items()})
        model.zero_grad(set_to_none=True)
    for name, value in gradients[0].items():
        assert torch.equal(value, gradients[1][name]), name


def test_dropout_is_on_what_embedding_attention_and_mlp_put_into_the_residual_stream(model_config: ModelConfig) -> None:
    model = random_model(model_config)
    ids, targets = random_ids(model_config, 4, 16).split(2)
    plain = model.loss(ids, targets)
    model.execute_as(Execution(dropout=0.3))
    assert torch.equal(model.loss(ids, targets), plain)
    assert torch.equal(model.training_loss(ids, targets)[0], plain)

    dropout = Dropout.of(SEEDS, 0.3, ids, 1 + 2 * model_config.num_hidden_layers)
    x = dropout(model.model.embed_tokens(ids), 0)
    for index, layer in enumerate(model.model.layers):
        assert isinstance(layer, Block)
        mixed = layer.self_attn(layer.input_layernorm(x), model.model.cos[:16], model.model.sin[:16])
        x = x + dropout(mixed, 1 + 2 * index)
        x = x + dropout(layer.mlp(layer.post_attention_layernorm(x)), 2 + 2 * index)
    logits = model.lm_head(model.model.norm(x))
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    objective, loss = model.training_loss(ids, targets, SEEDS)
    assert torch.equal(objective, expected)
    assert torch.equal(loss, expected)
    assert abs(expected - plain) > 1e-3


@pytest.mark.parametrize("tokens", [None, 300])
def test_label_smoothing_spreads_a_share_over_the_ids_that_there_are(
    tokens: int | None, model_config: ModelConfig
) -> None:
    model = random_model(model_config)
    ids, targets = random_ids(model_config, 4, 16).split(2)
    plain = model.loss(ids, targets)
    model.execute_as(Execution(label_smoothing=0.2, smoothed_ids=tokens))
    objective, loss = model.training_loss(ids, targets)
    assert torch.equal(loss, plain)
    assert torch.equal(model.loss(ids, targets), plain)
    log_p = model(ids).log_softmax(-1).flatten(0, 1)
    expected = 0.8 * plain - 0.2 * log_p[:, :tokens].mean()
    assert objective.item() == pytest.approx(expected.item(), rel=1e-6)
    theirs = functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), label_smoothing=0.2)
    assert (objective.item() == pytest.approx(theirs.item(), rel=1e-6)) == (tokens is None)
