"""Section `evaluation`: validation loss and text samples."""

from dataclasses import dataclass
from typing import Annotated

from smollm.config.fields import NOT_EMPTY, Rule, above, at_least


@dataclass(frozen=True)
class EvaluationConfig:
    validation_tokens: Annotated[int, at_least(1)]
    """At most this many held-out tokens are used for validation."""
    prompts: Annotated[
        tuple[str, ...],
        NOT_EMPTY,
        Rule(lambda prompts: all(prompts), "must hold no empty text", 'write e.g. ["import "]'),
    ]
    """What each sample continues."""
    sample_tokens: Annotated[int, at_least(1)]
    """Length of a continuation."""
    temperature: Annotated[float, above(0)]
    top_k: Annotated[int, at_least(1)]
    """Sample among the k likeliest tokens."""
