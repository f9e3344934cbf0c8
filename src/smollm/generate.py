"""Text samples, with a key-value cache.

Legend: B batch (one row a prompt), T time, V vocabulary.
"""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from smollm.config.evaluation import EvaluationConfig
from smollm.hardware import Hardware
from smollm.model import KeyValueCache, LlamaForCausalLM
from smollm.tokens import special_ids, vocabulary_size


@torch.no_grad()
def continue_prompts(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    evaluation: EvaluationConfig,
    hardware: Hardware,
    seed: int,
) -> list[str]:
    """The model's continuation of each prompt, `sample_tokens` long or up to the end-of-text token.

    All prompts advance together, one position at a time: a row takes its prompt's token while it
    has one, and a sampled token afterwards.

    Args:
        model: with a vocabulary no smaller than the tokenizer's; ids beyond it are never sampled.
        tokenizer: encodes prompts, decodes samples.
        evaluation: prompts, length, temperature and top_k.
        hardware: device and precision.
        seed: the same seed gives the same text.
    """
    prompts = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in evaluation.prompts]
    longest = model.config.max_position_embeddings - evaluation.sample_tokens
    prompts = [prompt[-longest:] for prompt in prompts]
    length = max(map(len, prompts)) + evaluation.sample_tokens
    known = vocabulary_size(tokenizer)
    device = hardware.device
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    given = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        given[row, : len(prompt)] = True
    ids, given = ids.to(device), given.to(device)
    chance = torch.Generator(device).manual_seed(seed)
    with hardware.autocast():
        cache = KeyValueCache.empty(model.config, len(prompts), length, device, hardware.dtype)
        for position in range(length - 1):
            logits = model(ids[:, position : position + 1], cache)[:, -1, :known].float()  # (B, V)
            sampled = sample(logits, evaluation.temperature, evaluation.top_k, chance)
            following = slice(position + 1, position + 2)
            ids[:, following] = torch.where(given[:, following], ids[:, following], sampled)
    return [
        _text(tokenizer, ids[row, len(prompt) : len(prompt) + evaluation.sample_tokens].tolist())
        for row, prompt in enumerate(prompts)
    ]


def sample(logits: Tensor, temperature: float, top_k: int, chance: torch.Generator) -> Tensor:
    """Draw one id a row, (B, 1), from the `top_k` likeliest of `logits` (B, V)."""
    best, ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    probabilities = torch.softmax(best / temperature, dim=-1)
    # as torch.multinomial draws, but numbers that are not finite are no error here: the loss finds them
    waits = torch.empty_like(probabilities).exponential_(generator=chance)
    return ids.gather(-1, (probabilities / waits).argmax(dim=-1, keepdim=True))


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Decode up to the first special token, which ends the text."""
    special = special_ids(tokenizer)
    end = next((index for index, one in enumerate(ids) if one in special), len(ids))
    text: str = tokenizer.decode(ids[:end])
    return text
