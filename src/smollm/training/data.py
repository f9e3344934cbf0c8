"""What a training stage reads from tokenize's outputs: tokenizer, batches, held-out windows."""

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from smollm.config.fields import Problems
from smollm.config.file import check_warmup
from smollm.config.training import TrainingConfig
from smollm.errors import ConfigError
from smollm.state.tokens import (
    TRAIN,
    VALIDATION,
    open_split,
    open_tokenizer,
    read_manifest,
    token_directory,
    tokenizer_path,
)
from smollm.training.batches import Batches, Ids, Replay, validation_windows
from smollm.training.settings import Settings


def resolve_epochs(training: TrainingConfig, stage: str, workspace: Path) -> TrainingConfig:
    """`training` with `steps` and `weight_decay` set: computed, where they are given in epochs instead, from the number
    of tokens that tokenize wrote.

    Raises:
        ConfigError: the warm-up does not fit into so few steps.
        CorpusError: there is no such text.
    """
    optimizer = training.optimizer
    if training.epochs is None and optimizer.weight_decay_epochs is None:
        return training
    steps_per_epoch = training.steps_per_epoch(int(read_manifest(token_directory(workspace, stage))[TRAIN]["tokens"]))
    if training.epochs is not None:
        training = replace(training, steps=max(1, round(training.epochs * steps_per_epoch)))
        problems = Problems("params.yaml")
        check_warmup(stage, training, problems)
        if problems.lines:
            raise ConfigError("\n".join(problems.lines))
    if optimizer.weight_decay_epochs is not None:
        decay = 1 / (optimizer.lr * optimizer.weight_decay_epochs * steps_per_epoch)
        training = replace(training, optimizer=replace(optimizer, weight_decay=decay))
    return training


@dataclass(frozen=True)
class TrainingData:
    """The text of a training stage, as batches to train on and windows to validate on."""

    tokenizer: Tokenizer
    end_of_text_id: int
    batches: Batches
    held_out: Ids
    """Windows of the stage's own held-out text, (N, T+1)."""
    pretrain_held_out: Ids | None = None
    """Windows of pretrain's held-out text, in a stage that continues pretrain: they show what it forgets."""

    @classmethod
    def open(cls, workspace: Path, settings: Settings, continues: str | None) -> "TrainingData":
        """Open the data of a stage; `continues` names the stage whose checkpoint it starts from, if there is one.

        Raises:
            CorpusError: there is too little text for the stage's steps or validation.
        """
        training, directory = settings.training, token_directory(workspace, settings.stage)
        tokens = open_split(directory, TRAIN)
        replay = None
        if continues and training.replay_fraction:
            replayed = open_split(token_directory(workspace, continues), TRAIN)
            replay = Replay(continues, replayed, training.replay_fraction)
        return cls(
            open_tokenizer(tokenizer_path(workspace)),
            int(read_manifest(directory)["end_of_text_id"]),
            Batches(
                tokens, training.sequences_per_step, training.sequence_length, settings.seed, settings.stage, replay
            ),
            _held_out(workspace, settings, settings.stage),
            _held_out(workspace, settings, continues) if continues else None,
        )


def _held_out(workspace: Path, settings: Settings, stage: str) -> Ids:
    """Windows of `stage`'s held-out text, as long as this stage's sequences."""
    length, most = settings.training.sequence_length, settings.evaluation.validation_tokens
    tokens = open_split(token_directory(workspace, stage), VALIDATION)
    return validation_windows(tokens, length, most, stage, settings.stage)
