"""The exported folder as `transformers` reads it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from smollm.config.model import ModelConfig
from smollm.model.export import write_model
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
