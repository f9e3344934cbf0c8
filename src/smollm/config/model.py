"""Section `model`: the shape of the Llama, in Hugging Face's names."""

from dataclasses import dataclass
from typing import Annotated

from smollm.config.fields import above, at_least


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama, and how its weights start."""

    vocab_size: Annotated[int, at_least(257)]
    hidden_size: Annotated[int, at_least(1)]
    intermediate_size: Annotated[int, at_least(1)]
    """Width of the SwiGLU MLP."""
    num_hidden_layers: Annotated[int, at_least(1)]
    num_attention_heads: Annotated[int, at_least(1)]
    num_key_value_heads: Annotated[int, at_least(1)]
    """Fewer than query heads: grouped-query attention."""
    max_position_embeddings: Annotated[int, at_least(2)]
    """The context, in tokens."""
    rope_theta: Annotated[float, above(0)]
    """Base of the rotary position embedding's frequencies."""
    rms_norm_eps: Annotated[float, above(0)]
    initializer_range: Annotated[float, above(0)]
    """Standard deviation of the initial weights; SmolLM's recipe is 1/sqrt(hidden_size)."""
    tie_word_embeddings: bool
    """Whether the output projection is the embedding matrix."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads
