"""Section `tokenizer`: text to token ids."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from smollm.config.fields import NOT_EMPTY, above, at_least


class TokenizerSource(Enum):
    """Where the tokenizer comes from."""

    TRAIN = "train"
    """Trained here, on the pretraining text."""
    FILE = "file"
    """A tokenizer.json below data/raw."""
    HUB = "hub"
    """A repository of the Hugging Face hub."""


@dataclass(frozen=True)
class TokenizerConfig:
    source: TokenizerSource
    vocab_size: Annotated[int, at_least(257)]
    """Tokens to train: 256 bytes, the end-of-text token and merges (source: train)."""
    min_frequency: Annotated[int, at_least(0)]
    """How often a pair of tokens must occur in that text to become a token of its own (source: train).

    So the vocabulary follows the size of the text: a token seen a few times teaches the model nothing.
    """
    train_megabytes: Annotated[float, above(0)]
    """How much of the training text the merges are learned from, in MB (source: train)."""
    end_of_text: Annotated[str, NOT_EMPTY]
    """The special token that ends each document."""
    file: str | None
    """Path below data/raw (source: file)."""
    repository: str | None
    """E.g. HuggingFaceTB/cosmo2-tokenizer (source: hub)."""
    revision: str | None
    """Commit of that repository (source: hub)."""
