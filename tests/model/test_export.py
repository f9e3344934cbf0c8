"""The exported folder as `transformers` reads it, and as this project reads it back."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    pipeline,
)
from transformers import LlamaForCausalLM as TheirLlama

from smollm.config.model import ModelConfig
from smollm.errors import CheckpointError
from smollm.model.export import read_model, write_model
from smollm.model.llama import LlamaForCausalLM

TEXTS = ["the cat sat on the mat", "\tif x:\n\t\treturn 2024", "a 🐈‍⬛ 猫", "  two  spaces ", ""]


def export(directory: Path, config: ModelConfig, tokenizer: Tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    write_model(directory, config, model.weights(), tokenizer, 0)
    return model


@pytest.mark.parametrize(
    "change", [{}, {"tie_word_embeddings": False}, {"rope_theta": 300.0, "rms_norm_eps": 0.1}], ids=str
)
def test_transformers_loads_the_rounded_weights_and_computes_our_logits(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer, change: dict[str, float]
) -> None:
    config = replace(model_config, **change)
    ours = export(tmp_path / "model", config, tokenizer)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values()), info
    loaded = dict(theirs.named_parameters())
    assert loaded.keys() == ours.weights().keys()
    for name, value in ours.weights().items():
        assert torch.equal(loaded[name], value.to(torch.bfloat16)), name
        value.data.copy_(loaded[name])

    ids = torch.randint(config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs.float()(ids).logits - ours(ids)).abs().max().item() <= 1e-4


def test_the_stored_type_is_bfloat16_by_default(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    export(tmp_path / "model", model_config, tokenizer)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").dtype == torch.bfloat16
    assert AutoConfig.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_exporting_leaves_the_weights_as_they_are(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    model = LlamaForCausalLM(model_config)
    before = {name: value.detach().clone() for name, value in model.weights().items()}
    write_model(tmp_path / "model", model_config, model.weights(), tokenizer, 0)
    for name, value in model.weights().items():
        assert torch.equal(value, before[name])


def test_the_exported_tokenizer_gives_our_ids_and_texts(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    export(tmp_path / "model", model_config, tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs.model_max_length == model_config.max_position_embeddings
    assert len(theirs) == tokenizer.get_vocab_size(with_added_tokens=True)


def test_the_end_of_text_is_known_to_model_and_tokenizer(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    export(tmp_path / "model", model_config, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 0
    assert model.config.bos_token_id == model.generation_config.bos_token_id == 0
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == 0
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", 0)
    assert theirs.decode([theirs.eos_token_id], skip_special_tokens=True) == ""


def test_another_end_of_text_id_is_written_everywhere(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_special_tokens(["<|end|>"])
    number = other.token_to_id("<|end|>")
    assert number > 0
    write_model(tmp_path / "model", model_config, LlamaForCausalLM(model_config).weights(), other, number)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == number
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token_id == number


def test_the_exported_model_generates_and_stops_at_the_end_of_text(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    ours = export(tmp_path / "model", model_config, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    prompt = theirs("the cat", return_tensors="pt")
    for name, value in ours.weights().items():
        value.data.copy_(model.state_dict()[name])
    expected = prompt["input_ids"][0].tolist()
    with torch.no_grad():
        while len(expected) < 22 and 0 not in expected:
            expected.append(int(ours(torch.tensor([expected]))[0, -1].argmax()))
    made = model.generate(**prompt, max_length=22, do_sample=False, pad_token_id=0)
    assert made[0].tolist() == expected
    model.lm_head.weight.data.zero_()  # tied: after anything all logits are equal, and the first id is 0
    assert model.generate(**prompt, max_length=22, do_sample=False, pad_token_id=0)[0].tolist()[-1] == 0


def test_the_weights_can_be_read_by_others(tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer) -> None:
    export(tmp_path / "model", model_config, tokenizer)
    for file in (tmp_path / "model").iterdir():
        assert file.stat().st_mode & 0o044 == 0o044, file.name


def test_a_batch_of_prompts_is_padded_on_the_left_and_continued_as_each_alone(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    export(tmp_path / "model", model_config, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs.pad_token == "<|endoftext|>"
    prompts = ["the cat sat on the mat", "x", "10 dogs"]
    batch = theirs(prompts, return_tensors="pt", padding=True)
    assert batch["input_ids"][1, 0] == theirs.pad_token_id
    assert batch["attention_mask"][:, -1].tolist() == [1, 1, 1]
    made = theirs.batch_decode(model.generate(**batch, max_new_tokens=8, do_sample=False), skip_special_tokens=True)
    for prompt, text in zip(prompts, made, strict=True):
        alone = model.generate(**theirs(prompt, return_tensors="pt"), max_new_tokens=8, do_sample=False)
        assert text == theirs.decode(alone[0], skip_special_tokens=True)


def test_the_pipeline_of_transformers_takes_batches_in_bf16_without_a_warning(
    tmp_path: Path,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    export(tmp_path / "model", model_config, tokenizer)
    generate = pipeline("text-generation", str(tmp_path / "model"), device="cpu", dtype=torch.bfloat16)
    prompts = ["the cat sat", "x", "10"]
    made = generate(prompts, batch_size=3, do_sample=False, max_new_tokens=8)
    alone = [generate(prompt, do_sample=False, max_new_tokens=8) for prompt in prompts]
    assert [text[0]["generated_text"][: len(prompt)] for prompt, text in zip(prompts, made, strict=True)] == prompts
    assert len(made) == len(alone) == 3
    assert generate.model.dtype == torch.bfloat16
    assert "pad" not in caplog.text


def test_the_body_alone_loads_in_bf16(tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer) -> None:
    ours = export(tmp_path / "model", model_config, tokenizer)
    body, info = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"]
    assert body(torch.tensor([[1, 2, 3]])).last_hidden_state.shape == (1, 3, model_config.hidden_size)
    assert torch.equal(body.embed_tokens.weight, ours.model.embed_tokens.weight.to(torch.bfloat16))


def test_the_embedding_of_the_end_of_text_can_be_finetuned(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    export(tmp_path / "model", replace(model_config, tie_word_embeddings=False), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    model(torch.tensor([[0, 1, 2]])).logits.square().sum().backward()
    assert model.model.embed_tokens.weight.grad[0].abs().sum() > 0


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": False}, {"rope_theta": 300.0}], ids=str)
def test_what_was_written_is_read_back(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer, change: dict[str, float]
) -> None:
    config = replace(model_config, **change)
    ours = export(tmp_path / "model", config, tokenizer)
    before = torch.get_rng_state()
    model, read = read_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config == config
    assert read.to_str() == tokenizer.to_str()
    for name, value in ours.weights().items():
        assert torch.equal(model.weights()[name], value.to(torch.bfloat16).float()), name
        value.data.copy_(model.weights()[name])
    assert model.weights().keys() == ours.weights().keys()
    ids = torch.randint(config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(ids), ours(ids))


@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_a_llama_that_transformers_has_written_is_read(tmp_path: Path, tokenizer: Tokenizer, shards: str) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
    )
    theirs = TheirLlama(config)
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() is (shards == "20KB")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours, _ = read_model(tmp_path)
    ids = torch.arange(40).view(1, 40)
    assert (theirs(ids).logits - ours(ids)).abs().max().item() <= 1e-4


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-50])

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: must be the config of a model, got no file"),
        (cut("config.json"), "config.json: must be the config of a model, got a damaged file"),
        (change_config(model_type="mistral"), "model_type must be llama, as in this project's Llama, got 'mistral'"),
        (change_config(rope_scaling={"rope_type": "llama3"}), "rope_type must be default"),
        (change_config(head_dim=16), "head_dim must be 8, as in this project's Llama, got 16"),
        (change_config(num_hidden_layers=3), "the weights must be those that config.json describes"),
        (change_config(vocab_size=270), "the weights must be those that config.json describes"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: must hold weights"),
        (cut("model.safetensors"), "model.safetensors: must hold weights"),
        (cut("tokenizer.json"), "tokenizer.json: must be the model's tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: must be the model's tokenizer"),
    ],
)
def test_another_or_a_damaged_model_is_one_line(
    tmp_path: Path,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    export(tmp_path, model_config, tokenizer)
    damage(tmp_path)
    with pytest.raises(CheckpointError) as error:
        read_model(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    export(tmp_path, model_config, tokenizer)
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens([f"token {number}" for number in range(60)])
    larger.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="must have at most the 320 tokens of the model, got 335"):
        read_model(tmp_path)
