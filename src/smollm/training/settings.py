"""What a training stage reads from params.yaml."""

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
    """With `steps` and `weight_decay` set, even if params.yaml gives them in epochs."""
    evaluation: EvaluationConfig
    runtime: RuntimeConfig

    @property
    def steps(self) -> int:
        """Of this stage."""
        assert self.training.steps is not None, "resolved by resolve_epochs"
        return self.training.steps
