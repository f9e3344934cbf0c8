"""Sections `pretrain` and `finetune`: one type, for one trainer."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from smollm.config.fields import Rule, above, at_least, below, between


class OptimizerKind(Enum):
    """How gradients become updates."""

    MUON = "muon"
    """Muon for the hidden matrices, AdamW for the embedding and the norms."""
    ADAMW = "adamw"
    """AdamW for everything."""


class Start(Enum):
    """The weights that a stage starts from."""

    INITIAL = "initial"
    """Random initial weights, for pretrain."""
    BEST = "best"
    """The previous stage's state with the best validation, for finetune."""
    LAST = "last"
    """The previous stage's last state, for finetune."""


class Export(Enum):
    """Which of a stage's states becomes its model."""

    BEST = "best"
    """The state with the best validation."""
    LAST = "last"
    """The last state."""


_BETAS = Rule(
    lambda betas: all(0 <= beta < 1 for beta in betas),
    "must be two numbers from 0 to below 1",
    "use e.g. [0.9, 0.95]",
)


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, rates and decay."""

    kind: OptimizerKind
    lr: Annotated[float, above(0)]
    """Peak learning rate."""
    embedding_lr: Annotated[float, above(0)]
    """Peak learning rate of embedding, output projection and norms when Muon trains the rest (kind: muon)."""
    weight_decay: Annotated[float | None, at_least(0)]
    """Decoupled, on matrices alone; null if `weight_decay_epochs` is set instead."""
    weight_decay_epochs: Annotated[float | None, above(0)]
    """Passes over the stage's text in which the decay alone, at the peak rate, would shrink a matrix to 1/e; null if
    `weight_decay` is set instead. The best value depends less on the size of the text (arXiv:2405.13698)."""
    embedding_weight_decay: Annotated[float | None, at_least(0)]
    """Weight decay of embedding and output projection; null: that of the other matrices."""
    betas: Annotated[tuple[float, float], _BETAS]
    """Decay of AdamW's two moments."""
    eps: Annotated[float, above(0)]
    momentum: Annotated[float, at_least(0), below(1)]
    """Muon's Nesterov momentum."""
    newton_schulz_steps: Annotated[int, between(1, 20)]
    """Muon's iterations towards an orthogonal update."""

    @property
    def decays(self) -> tuple[float, float]:
        """Weight decay of the hidden matrices, and of embedding and output projection."""
        assert self.weight_decay is not None, "resolved by resolve_epochs"
        own = self.embedding_weight_decay
        return self.weight_decay, self.weight_decay if own is None else own


@dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up, stable, decay (arXiv:2404.06395)."""

    warmup_steps: Annotated[int, at_least(0)]
    decay_fraction: Annotated[float, between(0, 1)]
    """The last part of the stage, in which the rate falls linearly."""
    final_lr_fraction: Annotated[float, between(0, 1)]
    """The rate that the decay would reach one step after the last, as a fraction of the peak."""


@dataclass(frozen=True)
class TrainingConfig:
    """What a training stage computes; `runtime` says how and where."""

    start: Start
    export: Export
    steps: Annotated[int | None, at_least(1)]
    """Length of the stage; null if `epochs` is set instead."""
    epochs: Annotated[float | None, above(0)]
    """Length of the stage in passes over its text; null if `steps` is set instead."""
    patience: Annotated[int | None, at_least(1)]
    """The stage ends after this many validations in a row without a new best one; null: never early."""
    sequences_per_step: Annotated[int, at_least(1)]
    """The global batch; how it is cut for the hardware is `runtime.micro_batch_size`."""
    sequence_length: Annotated[int, at_least(2)]
    """Tokens of a sequence."""
    replay_fraction: Annotated[float, at_least(0), below(1)]
    """Fraction of the sequences that are from the previous stage's training text: for finetune."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    mask_documents: bool
    """Whether a token attends to its own document alone, not to others in the same sequence."""
    dropout: Annotated[float, at_least(0), below(1)]
    """Dropout rate in training: of the embedding's output, and of what attention and MLP add to it."""
    label_smoothing: Annotated[float, at_least(0), below(1)]
    """Fraction of each target's probability that training spreads over all tokens."""
    ema_decay: Annotated[float | None, above(0), below(1)]
    """Decay of the weights' moving average, which is then validated and exported; null: no average."""
    gradient_clip: Annotated[float, above(0)]
    """Largest norm of the whole gradient."""
    log_every_steps: Annotated[int, at_least(1)]
    sample_every_steps: Annotated[int, at_least(1)]
    validate_every_steps: Annotated[int, at_least(1)]

    @property
    def tokens_per_step(self) -> int:
        return self.sequences_per_step * self.sequence_length

    def steps_per_epoch(self, tokens: int) -> float:
        """The number of steps that read the stage's own text, of `tokens` tokens, once."""
        return tokens / (self.tokens_per_step * (1 - self.replay_fraction))

    def max_warmup_steps(self, steps: int) -> int:
        """The longest warm-up that a stage of `steps` steps has room for: up to the decay."""
        return steps - round(self.schedule.decay_fraction * steps)
