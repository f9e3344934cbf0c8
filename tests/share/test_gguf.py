"""The file for llama.cpp: what it holds, and that llama.cpp, where it is installed, continues as transformers does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollm.config.model import ModelConfig
from smollm.errors import ConfigError
from smollm.model.export import read_model, write_model
from smollm.model.llama import LlamaForCausalLM
from smollm.share.gguf import run, write_gguf

gguf = pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported model of random weights, in the folder in which the command is run."""
    torch.manual_seed(0)
    config = replace(model_config, vocab_size=tokenizer.get_vocab_size(), tie_word_embeddings=False)
    write_model(tmp_path / "models/finetune", config, LlamaForCausalLM(config).weights(), tokenizer, 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "models/finetune"


def contents(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def test_the_file_has_the_models_shape_and_its_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    run(["model.gguf"])
    found = contents(Path("model.gguf"))
    for name, value in {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }.items():
        assert found[name] == value, name
    assert found["tokenizer.ggml.tokens"] == [tokenizer.id_to_token(index) for index in range(275)]
    assert found["tokenizer.ggml.token_type"][:2] == [gguf.TokenType.CONTROL, gguf.TokenType.NORMAL]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]


@pytest.mark.parametrize(("name", "kind"), [("bf16", "BF16"), ("f16", "F16"), ("f32", "F32")])
def test_matrices_have_the_type_asked_for_and_norms_are_float32(folder: Path, name: str, kind: str) -> None:
    run(["model.gguf", "--type", name])
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader("model.gguf").tensors}
    model, _ = read_model(folder)
    assert len(tensors) == len(model.weights())
    assert tensors["blk.1.attn_v.weight"].tensor_type.name == kind
    assert tensors["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    value = gguf.quants.dequantize(tensors["blk.1.attn_v.weight"].data, tensors["blk.1.attn_v.weight"].tensor_type)
    expected = model.weights()["model.layers.1.self_attn.v_proj.weight"].detach().numpy()
    assert np.allclose(value.reshape(expected.shape), expected, rtol=1e-3, atol=1e-6)


def test_ids_that_the_tokenizer_has_not_are_unused(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    write_gguf(tmp_path / "model.gguf", LlamaForCausalLM(model_config), tokenizer, 0)
    found = contents(tmp_path / "model.gguf")
    assert len(set(found["tokenizer.ggml.tokens"])) == model_config.vocab_size == 320
    assert set(found["tokenizer.ggml.token_type"][275:]) == {gguf.TokenType.UNUSED}


def test_a_tokenizer_that_splits_as_llama_cpp_cannot_is_refused(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    other = Tokenizer.from_str(tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    write_gguf(tmp_path / "model.gguf", LlamaForCausalLM(model_config), other, 0)
    assert contents(tmp_path / "model.gguf")["tokenizer.ggml.pre"] == "gpt-2"
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    with pytest.raises(ConfigError, match=r"got one that splits by Whitespace, ByteLevel; try llama.cpp's"):
        write_gguf(tmp_path / "other.gguf", LlamaForCausalLM(model_config), other, 0)
    assert not (tmp_path / "other.gguf").exists()


@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_llama_cpp_continues_greedily_as_transformers_does(folder: Path, name: str) -> None:
    llama = pytest.importorskip("xllamacpp")
    run(["model.gguf", "--type", name])
    settings = llama.CommonParams()
    settings.model.path = "model.gguf"
    settings.n_ctx, settings.n_parallel, settings.warmup = 64, 1, False
    server = llama.Server(settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in ("the cat", "x = 345\n\n    y", "été 🐈 don't  x"):
        asked = {"prompt": prompt, "max_tokens": 16, "temperature": 0}
        answer = server.handle_completions(asked)
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert answer["usage"]["prompt_tokens"] == ids["input_ids"].shape[1]
        assert answer["choices"][0]["text"] == tokenizer.decode(made, skip_special_tokens=True)
        assert len(set(made.tolist())) > 3
