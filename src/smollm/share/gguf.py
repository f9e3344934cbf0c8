"""Write a model as a GGUF file for llama.cpp and what is built on it: ``python3 -m smollm.share.gguf`` (`make gguf`).

llama.cpp's own converter knows a tokenizer by a hash of its ids, and so refuses every tokenizer that it has not met.
Here it is known by how it splits text.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from smollm.config.model import ModelConfig
from smollm.errors import ConfigError
from smollm.model.export import read_model
from smollm.model.llama import LlamaForCausalLM
from smollm.operate.models import find_model
from smollm.stage.run import main
from smollm.state.files import disk_errors, read_json
from smollm.state.tokens import special_ids
from smollm.state.workspace import Workspace

if TYPE_CHECKING:
    from gguf import GGUFWriter

_DIGITS = {"type": "Digits", "individual_digits": True}
_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_SPLITS = {"smollm": [_DIGITS, _WORDS], "gpt-2": [_WORDS]}
"""llama.cpp's names of the ways to split text that it shares with this project's tokenizers."""

_TYPES = {"bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "f32": "ALL_F32"}
"""What matrices are stored in, with the name that a file has for it."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""llama.cpp's names of the weights."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Write the file that the command line asks for.

    Raises:
        PipelineError: with a line for the user.
    """
    parser = argparse.ArgumentParser(prog="python3 -m smollm.share.gguf", description="Write a model for llama.cpp.")
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument(
        "--model",
        default="models/finetune",
        metavar="NAME",
        help="a folder, a DVC or Git revision (low, v1, low:pretrain), or an MLflow run's id (models/finetune)",
    )
    parser.add_argument(
        "--type", choices=_TYPES, default="bf16", help="of the matrices; bf16 is what the model is stored in (bf16)"
    )
    options = parser.parse_args(arguments)
    with find_model(options.model, Workspace.find(Path.cwd())) as found:
        model, tokenizer = read_model(found.directory)
        end = read_json(found.directory / "config.json").get("eos_token_id")
    write_gguf(options.file, model, tokenizer, end, options.type)
    print(f"{found.shown}: written to {options.file}; try it with: llama-cli -no-cnv -m {options.file} -p 'def main('")


def write_gguf(
    file: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, end_of_text_id: int | None, type_name: str = "bf16"
) -> None:
    """Write weights, shape and tokenizer to one file.

    Args:
        file: replaced if it exists.
        model: in float32.
        tokenizer: byte-level BPE that splits text as GPT-2's does, or as SmolLM's.
        end_of_text_id: ends a text, and pads; None: the model has no such token.
        type_name: bf16, f16 or f32, for the matrices; norms are float32.

    Raises:
        ConfigError: the package gguf is missing, or llama.cpp does not know such a tokenizer.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "llama.cpp's format needs the package gguf, which is not installed; pip install gguf"
        ) from None
    split = _split(tokenizer)
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_file_type(gguf.LlamaFileType[_TYPES[type_name]])
        _add_shape(writer, model.config)
        _add_tokenizer(writer, tokenizer, split, model.config.vocab_size, end_of_text_id)
        for name, values in _tensors(model):
            kind = gguf.GGMLQuantizationType[type_name.upper() if values.ndim > 1 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_shape(writer: "GGUFWriter", config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)


def _add_tokenizer(
    writer: "GGUFWriter", tokenizer: Tokenizer, split: str, vocab_size: int, end_of_text_id: int | None
) -> None:
    from gguf import TokenType

    names = {index: name for name, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    special, added = special_ids(tokenizer), tokenizer.get_added_tokens_decoder()
    kinds = {index: TokenType.CONTROL if index in special else TokenType.USER_DEFINED for index in added}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    # the model may have ids that the tokenizer has not
    writer.add_token_list([names.get(index, f"[unused {index}]") for index in range(vocab_size)])
    writer.add_token_types(
        [kinds.get(index, TokenType.NORMAL if index in names else TokenType.UNUSED) for index in range(vocab_size)]
    )
    writer.add_token_merges([" ".join(pair) for pair in _description(tokenizer)["model"]["merges"]])
    writer.add_add_bos_token(False)
    if end_of_text_id is not None:
        writer.add_bos_token_id(end_of_text_id)
        writer.add_eos_token_id(end_of_text_id)
        writer.add_pad_token_id(end_of_text_id)


def _split(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of how `tokenizer` splits text before it merges bytes."""
    pre = _description(tokenizer).get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    for name, needed in _SPLITS.items():
        if len(steps) == len(needed) and all(map(_has, steps, needed)):
            return name
    kinds = ", ".join(str(step.get("type")) for step in steps)
    raise ConfigError(
        "tokenizer.json: must split text as GPT-2's tokenizer or SmolLM's, which llama.cpp knows, got one that splits "
        f"by {kinds}; try llama.cpp's convert_hf_to_gguf.py, which knows published tokenizers"
    )


def _has(step: dict[str, Any], settings: dict[str, object]) -> bool:
    return step.items() >= settings.items()


def _description(tokenizer: Tokenizer) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(tokenizer.to_str())
    return description


def _tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The weights by llama.cpp's names."""
    for name, value in model.weights().items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".") if "layers" in name else ("", "", name)
        key = _NAMES[rest.removesuffix(".weight")]
        heads = {
            "attn_q": model.config.num_attention_heads,
            "attn_k": model.config.num_key_value_heads,
        }.get(key)
        value = value.detach() if heads is None else _pairs_together(value.detach(), heads)
        yield f"{f'blk.{layer}.' if layer else ''}{key}.weight", value.numpy()


def _pairs_together(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head, whose rotary pairs are (i, i + D/2) here and (2i, 2i + 1) in llama.cpp."""
    size = weight.shape[0] // heads
    return weight.view(heads, 2, size // 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()


if __name__ == "__main__":
    main(run)
