"""Samples that continue the beginnings of held-out documents, each beside the document's own continuation."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from smollm.config.evaluate import EvaluateConfig
from smollm.config.evaluation import EvaluationConfig
from smollm.device.hardware import Hardware
from smollm.device.seeding import key
from smollm.errors import CorpusError
from smollm.evaluate.text import HeldOutText
from smollm.model.generate import INCOMPLETE, Sampler
from smollm.model.llama import LlamaForCausalLM

_ROWS = 32
"""Samples drawn at once."""


@dataclass(frozen=True)
class Sample:
    document: str
    """The document that it continues."""
    is_code: bool
    prompt: str
    sample: str
    """What the model wrote."""
    reference: str
    """What the document has there, in as many tokens."""


def places(text: HeldOutText, settings: EvaluateConfig) -> list[tuple[int, int]]:
    """The document of each prompt, and where in the text it begins: at the beginnings of documents first.

    Raises:
        CorpusError: no document is as long as a prompt and a sample.
    """
    length = settings.prompt_tokens + settings.sample_tokens
    longest = int(text.lengths.max(initial=0))
    if longest < length:
        raise CorpusError(
            f"params.yaml: evaluate.sample_tokens must leave a held-out document of {text.name} long enough for prompt "
            f"and sample ({length} tokens), got {longest} tokens in the longest; lower it"
        )
    fitting = [int(document) for document in np.flatnonzero(text.lengths >= length)]
    beginnings = [(document, int(text.offsets[document])) for document in fitting]
    inside = [
        (document, begin + start)
        for document, begin in beginnings
        for start in range(length, int(text.lengths[document]) - length + 1, length)
    ]
    chosen = _spread(beginnings, settings.samples)
    return chosen + _spread(inside, settings.samples - len(chosen))


def draw(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    text: HeldOutText,
    settings: EvaluateConfig,
    hardware: Hardware,
    seed: int,
) -> list[dict[str, Any]]:
    """Continue documents of `text`; the same seed gives the same samples on the same hardware."""
    chosen = places(text, settings)
    ends = settings.prompt_tokens, settings.prompt_tokens + settings.sample_tokens
    prompts = [_decode(tokenizer, text, start, start + ends[0]) for _, start in chosen]
    written: list[str] = []
    for first in range(0, len(prompts), _ROWS):
        rows = tuple(prompts[first : first + _ROWS])
        evaluation = EvaluationConfig(1, rows, settings.sample_tokens, settings.temperature, settings.top_k)
        written += Sampler(model, tokenizer, evaluation, hardware)(key(seed, "evaluate", text.name, first))
    return [
        asdict(
            Sample(
                text.names[document],
                text.is_code and start == int(text.offsets[document]),
                prompt,
                sample.rstrip(INCOMPLETE),
                _decode(tokenizer, text, start + ends[0], start + ends[1]),
            )
        )
        for (document, start), prompt, sample in zip(chosen, prompts, written, strict=True)
    ]


def _decode(tokenizer: Tokenizer, text: HeldOutText, start: int, end: int) -> str:
    decoded: str = tokenizer.decode(text.tokens[start:end].tolist(), skip_special_tokens=False)
    return decoded.rstrip(INCOMPLETE)


def _spread(choices: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """`count` of the choices, or all if there are fewer, evenly spread."""
    count = min(count, len(choices))
    return [choices[n * len(choices) // count] for n in range(count)]
