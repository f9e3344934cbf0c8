"""The trained model as an ordinary Hugging Face folder: bf16 weights, config, tokenizer."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from smollm.config.model import ModelConfig
from smollm.state.files import apply_umask, disk_errors, write_atomically, write_json


def write_model(
    directory: Path, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer, end_of_text_id: int
) -> None:
    """Write what `from_pretrained` of `transformers` reads.

    Args:
        directory: made if missing.
        config: shape of the model.
        weights: by Hugging Face name; stored in bfloat16.
        tokenizer: its ids are a prefix of the model's vocabulary.
        end_of_text_id: ends a document; also the beginning-of-sequence token, as in SmolLM.
    """
    directory.mkdir(parents=True, exist_ok=True)
    half = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in weights.items()}
    with disk_errors(directory / "model.safetensors"):
        save_file(half, directory / "model.safetensors", metadata={"format": "pt"})
    apply_umask(directory / "model.safetensors")
    special = {"bos_token_id": end_of_text_id, "eos_token_id": end_of_text_id}
    write_json(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": config.max_position_embeddings,
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.rms_norm_eps,
            "initializer_range": config.initializer_range,
            "tie_word_embeddings": config.tie_word_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            **special,
            "torch_dtype": "bfloat16",
        },
    )
    write_json(directory / "generation_config.json", special)
    end_of_text = tokenizer.id_to_token(end_of_text_id)
    write_atomically(directory / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end_of_text,
            "eos_token": end_of_text,
            "unk_token": end_of_text,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_position_embeddings,
        },
    )
