"""What one training stage reads of the params, and the model that it builds from them."""

from dataclasses import dataclass

from smollm.config.evaluation import EvaluationConfig
from smollm.config.model import ModelConfig
from smollm.config.runtime import RuntimeConfig
from smollm.config.training import TrainingConfig


@dataclass(frozen=True)
class Settings:
    """The sections of the params that a training stage reads."""

    stage: str
    seed: int
    model: ModelConfig
    training: TrainingConfig
    """With a number of steps, where the params have epochs."""
    evaluation: EvaluationConfig
    runtime: RuntimeConfig

    @property
    def steps(self) -> int:
        """Of this stage."""
        assert self.training.steps is not None, "resolved by resolve_steps"
        return self.training.steps
