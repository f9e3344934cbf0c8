"""The trained model as an ordinary Hugging Face folder: bf16 weights, config, tokenizer. Written, and read back."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from smollm.config.model import ModelConfig
from smollm.errors import CheckpointError
from smollm.model.llama import LlamaForCausalLM, rotary_tables
from smollm.state.files import apply_umask, disk_errors, read_json, write_atomically, write_json
from smollm.state.tokens import open_tokenizer, vocabulary_size

_WEIGHTS = "model.safetensors"

_FIXED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""Settings of Hugging Face's Llama that are the same for all models of this project."""


def write_model(
    directory: Path, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer, end_of_text_id: int
) -> None:
    """Write what `from_pretrained` of `transformers` reads.

    Args:
        directory: made if missing.
        config: shape of the model.
        weights: by Hugging Face name; stored in bfloat16.
        tokenizer: its ids are a prefix of the model's vocabulary.
        end_of_text_id: ends a document; also the beginning-of-sequence token, as in SmolLM, and the padding.

    Padding by end-of-text needs no token that the weights lack, and attention masks it in any case. config.json does
    not name it: `transformers` would take its embedding for constant, and never finetune it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    half = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in weights.items()}
    with disk_errors(directory / _WEIGHTS):
        save_file(half, directory / _WEIGHTS, metadata={"format": "pt"})
    apply_umask(directory / _WEIGHTS)
    special = {"bos_token_id": end_of_text_id, "eos_token_id": end_of_text_id}
    write_json(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            **_FIXED,
            **asdict(config),
            "head_dim": config.head_dim,
            **special,
            "torch_dtype": "bfloat16",
        },
    )
    write_json(directory / "generation_config.json", {**special, "pad_token_id": end_of_text_id})
    end_of_text = tokenizer.id_to_token(end_of_text_id)
    write_atomically(directory / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end_of_text,
            "eos_token": end_of_text,
            "unk_token": end_of_text,
            "pad_token": end_of_text,
            "padding_side": "left",  # each text of a batch ends where its continuation begins
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_position_embeddings,
        },
    )


def read_model(directory: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """Read what `write_model` or `transformers` has written: a Llama, on the CPU in float32, and its tokenizer.

    Raises:
        CheckpointError: the folder has no such model, or a damaged one.
    """
    config = read_config(directory / "config.json")
    with torch.device("meta"):  # no weights are drawn
        model = LlamaForCausalLM(config)
    weights = _read_weights(directory)
    if config.tie_word_embeddings and "model.embed_tokens.weight" in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{directory}: the weights must be those that config.json describes, got: {reason:.300}; fetch the folder "
            "again"
        ) from None
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.cos, model.model.sin = rotary_tables(config)
    return model, _read_tokenizer(directory / "tokenizer.json", config)


def read_config(path: Path) -> ModelConfig:
    """The shape of the model whose config.json this is.

    Raises:
        CheckpointError: it is not of a Llama, or of a variant that this project does not have.
    """
    values = read_json(path)
    if not values:
        raise CheckpointError(
            f"{path}: must be the config of a model, got {'a damaged file' if path.exists() else 'no file'}; name a "
            "folder such as models/finetune"
        )
    rope: dict[str, Any] = values.get("rope_parameters") or values.get("rope_scaling") or {}
    values["rope_theta"] = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
    values.setdefault("tie_word_embeddings", False)
    missing = [field.name for field in fields(ModelConfig) if field.name not in values]
    if missing:
        raise CheckpointError(f"{path}: must set {', '.join(missing)}, got a file without; name a Llama's folder")
    config = ModelConfig(**{field.name: values[field.name] for field in fields(ModelConfig)})
    rules = {**_FIXED, "head_dim": config.head_dim}
    found = {**values, "rope_type": rope.get("rope_type", rope.get("type", "default"))}
    for name, value in {**rules, "rope_type": "default"}.items():
        if (got := found.get(name, value)) not in (value, None):
            raise CheckpointError(
                f"{path}: {name} must be {value}, as in this project's Llama, got {got!r}; use `transformers` for this "
                "model"
            )
    return config


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """All weights in float32, from one file or from those that an index lists."""
    index = read_json(directory / f"{_WEIGHTS}.index.json").get("weight_map", {})
    weights: dict[str, Tensor] = {}
    for name in sorted(set(index.values()) or {_WEIGHTS}):
        try:
            weights |= load_file(directory / name)
        except (SafetensorError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{directory / name}: must hold weights, got: {error}; fetch the folder again, e.g. by `dvc pull`"
            ) from None
    return {name: value.float() for name, value in weights.items()}


def _read_tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    try:
        tokenizer = open_tokenizer(path)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: must be the model's tokenizer, got: {error}; fetch the folder again") from None
    size = vocabulary_size(tokenizer)
    if size > config.vocab_size:
        raise CheckpointError(
            f"{path}: must have at most the {config.vocab_size} tokens of the model, got {size}; use the tokenizer "
            "that the model was trained with"
        )
    return tokenizer
