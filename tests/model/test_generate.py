"""Samples: greedy text against full recomputation, seeds, and what is never sampled."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, processors

from smollm.config.evaluation import EvaluationConfig
from smollm.config.model import ModelConfig
from smollm.device.hardware import Hardware
from smollm.model import fused
from smollm.model.generate import Sampler, sample
from smollm.model.llama import Execution, LlamaForCausalLM

PROMPTS = ("the cat", "the", "a 🐈 sat on the mat, and")


def ask(
    prompts: tuple[str, ...], sample_tokens: int = 16, temperature: float = 1.0, top_k: int = 1
) -> EvaluationConfig:
    return EvaluationConfig(1, prompts, sample_tokens, temperature, top_k)


def random_model(config: ModelConfig) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def scripted_model(config: ModelConfig, following: dict[int, int]) -> LlamaForCausalLM:
    """A model that finds `following[id]` likeliest after `id`, whatever came before."""
    config = replace(config, hidden_size=config.vocab_size, num_hidden_layers=1, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(config.vocab_size))
        model.lm_head.weight.zero_()
        for one, other in following.items():
            model.lm_head.weight[other, one] = 1.0
    return model


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.token_to_id(letter) for letter in text]


@pytest.mark.parametrize("tied", [True, False])
def test_greedy_text_equals_greedy_text_by_full_recomputation(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware, tied: bool
) -> None:
    model = random_model(replace(model_config, tie_word_embeddings=tied))
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        for _ in range(16):
            with torch.no_grad():
                logits = model(torch.tensor([ids]))[0, -1, : tokenizer.get_vocab_size()]
            ids.append(int(logits.argmax()))
        made = ids[-16:]
        expected.append(tokenizer.decode(made[: made.index(0)] if 0 in made else made))
    assert Sampler(model, tokenizer, ask(PROMPTS), cpu)(seed=1) == expected
    assert all(expected)


def test_prompts_of_different_lengths_are_continued_as_each_alone(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    model = random_model(model_config)
    alone = [Sampler(model, tokenizer, ask((prompt,)), cpu)(seed=1)[0] for prompt in PROMPTS]
    assert Sampler(model, tokenizer, ask(PROMPTS), cpu)(seed=1) == alone
    assert len(set(alone)) == len(PROMPTS)


@pytest.mark.parametrize(("prompt", "first_pass"), [("x", 1), ("xyxy", 1), ("xyxyx", 4), ("xyxyxyxy", 7)])
def test_only_prompts_of_some_length_get_a_pass_of_their_own(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware, prompt: str, first_pass: int
) -> None:
    model = random_model(model_config)
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    Sampler(model, tokenizer, ask((prompt, prompt + "xyz"), 8), cpu)(seed=1)
    assert lengths == [first_pass] + [1] * (len(prompt) - first_pass + 10)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    model = random_model(model_config)
    first, again, other = (Sampler(model, tokenizer, ask(PROMPTS, top_k=50), cpu)(seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_text_does_not_depend_on_torchs_global_generator(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    model = random_model(model_config)
    first = Sampler(model, tokenizer, ask(PROMPTS, top_k=50), cpu)(seed=1)
    torch.rand(7)
    before = torch.get_rng_state()
    assert Sampler(model, tokenizer, ask(PROMPTS, top_k=50), cpu)(seed=1) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_a_continuation_has_the_length_asked_for(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    x, y = letters(tokenizer, "xy")
    model = scripted_model(model_config, {x: y, y: x})
    assert Sampler(model, tokenizer, ask(("x", "xyx"), 7), cpu)(seed=1) == ["yxyxyxy", "yxyxyxy"]


def test_a_continuation_stops_at_the_end_of_text(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    x, y, z = letters(tokenizer, "xyz")
    model = scripted_model(model_config, {x: y, y: z, z: 0, 0: x})
    assert Sampler(model, tokenizer, ask(("x", "z"), 7), cpu)(seed=1) == ["yz", ""]


def test_the_end_of_text_token_written_in_a_prompt_is_text(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    end, x, y = letters(tokenizer, ">xy")
    model = scripted_model(model_config, {end: x, x: y, y: x, 0: 0})
    assert Sampler(model, tokenizer, ask(("<|endoftext|>",), 4), cpu)(seed=1) == ["xyxy"]


def test_a_prompt_is_encoded_as_documents_are_whatever_the_tokenizer_would_add(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    x, y = letters(tokenizer, "xy")
    model = scripted_model(model_config, {x: y, y: x, 0: 0})
    adding = Tokenizer.from_str(tokenizer.to_str())
    adding.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert Sampler(model, adding, ask(("x",), 4), cpu)(seed=1) == ["yxyx"]


def test_a_continuation_goes_on_after_an_added_token_that_is_not_special(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    # phi's tokenizer, for one, has runs of spaces as added tokens
    with_more = Tokenizer.from_str(tokenizer.to_str())
    with_more.add_tokens([AddedToken("    ", special=False)])
    x, y, spaces = (*letters(with_more, "xy"), with_more.token_to_id("    "))
    model = scripted_model(model_config, {x: spaces, spaces: y, y: 0})
    assert Sampler(model, with_more, ask(("x",), 5), cpu)(seed=1) == ["    y"]


def test_ids_beyond_the_tokenizers_vocabulary_are_never_sampled(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    x, y = letters(tokenizer, "xy")
    model = scripted_model(model_config, {x: y, y: x})
    known = tokenizer.get_vocab_size()
    assert known < model_config.vocab_size
    with torch.no_grad():
        model.lm_head.weight[known:] = 2.0  # after anything
    assert Sampler(model, tokenizer, ask(("x",), 5), cpu)(seed=1) == ["yxyxy"]


def test_a_prompt_longer_than_the_context_leaves_room_for_the_sample(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    x, y = letters(tokenizer, "xy")
    model = scripted_model(model_config, {x: y, y: x})
    (text,) = Sampler(model, tokenizer, ask(("x" * 500,), 6), cpu)(seed=1)
    assert text == "yxyxyx"


def test_the_texts_grow_to_what_they_are_without_a_listener(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    sampler = Sampler(random_model(model_config), tokenizer, ask(PROMPTS, top_k=50), cpu)
    seen: list[list[str]] = []
    texts = sampler(1, seen.append)
    assert texts == sampler(1)
    for row, text in enumerate(texts):
        grown = [moment[row] for moment in seen]
        assert all(after.startswith(before) for before, after in pairwise(grown))
        assert text.startswith(grown[-1])
        assert len(set(grown)) > 3


def test_half_a_character_is_held_back(model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware) -> None:
    x, y = letters(tokenizer, "xy")
    first, second = (tokenizer.token_to_id(token) for token in tokenizer.encode("é").tokens)
    model = scripted_model(model_config, {x: first, first: second, second: y, y: 0})
    seen: list[list[str]] = []
    Sampler(model, tokenizer, ask(("x",), 8), cpu)(1, seen.append)
    assert seen == [[""], ["é"], ["éy"], ["éy"]]


def test_a_listener_is_told_no_more_once_all_texts_have_ended(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    x, y, z = letters(tokenizer, "xyz")
    model = scripted_model(model_config, {x: y, y: z, z: 0, 0: x})
    seen: list[list[str]] = []
    assert Sampler(model, tokenizer, ask(("x", "z"), 30), cpu)(1, seen.append) == ["yz", ""]
    assert seen == [["y", ""], ["yz", ""], ["yz", ""]]


def test_only_the_likeliest_ids_are_drawn() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.9, -1.0]]).repeat(500, 1)
    drawn = sample(logits, 1.0, 2, torch.Generator().manual_seed(0))
    assert drawn.shape == (500, 1)
    assert set(drawn.flatten().tolist()) == {1, 3}


def test_the_temperature_flattens_or_sharpens_the_choice() -> None:
    logits = torch.tensor([[0.0, 1.0]]).repeat(4000, 1)
    for temperature in (0.5, 1.0, 2.0):
        drawn = sample(logits, temperature, 2, torch.Generator().manual_seed(0)).double().mean().item()
        # a standard deviation is 0.008 or less
        assert drawn == pytest.approx(torch.sigmoid(torch.tensor(1 / temperature)).item(), abs=0.04)


def test_more_ids_asked_for_than_there_are_means_all() -> None:
    logits = torch.zeros(300, 3)
    drawn = sample(logits, 1.0, 50, torch.Generator().manual_seed(0))
    assert set(drawn.flatten().tolist()) == {0, 1, 2}


@pytest.mark.gpu
@pytest.mark.parametrize("fuses", [True, False])
def test_replayed_positions_give_the_text_of_single_ones_and_follow_the_weights(
    wide_config: ModelConfig, tokenizer: Tokenizer, gpu: Hardware, fuses: bool
) -> None:
    model = random_model(wide_config).to("cuda")
    if fuses:
        model.execute_as(Execution(kernels=fused.FusedKernels()))
    replayed = Sampler(model, tokenizer, ask(PROMPTS, top_k=50), gpu)
    single = Sampler(model, tokenizer, ask(PROMPTS, top_k=50), replace(gpu, compile=False))
    first = replayed(1)
    assert [replayed(2), replayed(1)] == [single(2), first]
    assert first == single(1) != replayed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert replayed(1) == single(1) != first
