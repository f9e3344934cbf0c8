"""Section `evaluate`: what the optional stage `evaluate` measures of the finetuned model (`make evaluate`)."""

from dataclasses import dataclass
from typing import Annotated

from smollm.config.fields import Rule, above, at_least


@dataclass(frozen=True)
class EvaluateConfig:
    held_out_tokens: Annotated[int, at_least(1)]
    """At most this many tokens of each held-out text are predicted, in windows spread over all of it."""
    sequence_length: Annotated[int | None, at_least(1)]
    """Length of a window; null: finetune's."""
    samples: Annotated[int, at_least(1)]
    """Continuations of each held-out text's documents."""
    prompt_tokens: Annotated[int, at_least(1)]
    """Beginning of a document that a sample continues."""
    sample_tokens: Annotated[int, at_least(1)]
    """Length of a sample, and of the document's own continuation that it is compared with."""
    temperature: Annotated[float, above(0)]
    top_k: Annotated[int, at_least(1)]
    """Sample among the k likeliest tokens."""
    tasks: Annotated[tuple[str, ...], Rule(all, "must hold no empty name", "remove it")]
    """Tasks of lm-eval, or of the user's files in data/tasks, by name."""
    task_examples: Annotated[int | None, at_least(1)]
    """At most this many examples of each task; null: all."""
