"""Trainers of a tiny model, without a stage around them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from smollm.config.evaluation import EvaluationConfig
from smollm.config.file import load
from smollm.config.model import ModelConfig
from smollm.config.training import Export, OptimizerConfig, OptimizerKind, ScheduleConfig, Start, TrainingConfig
from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.model.llama import LlamaForCausalLM
from smollm.state.journal import Journal, Kind
from smollm.tracking.console import ProgressBar
from smollm.training.assembly import Assembly, choose_execution
from smollm.training.batches import Batches, validation_windows
from smollm.training.checkpoint_store import CheckpointStore
from smollm.training.data import TrainingData
from smollm.training.optim import Optimizer
from smollm.training.records import Records
from smollm.training.settings import Settings
from smollm.training.stop import StopSignal
from smollm.training.trainer import Trainer

FINGERPRINT = "0123456789abcdef"
TRAINING = TrainingConfig(
    start=Start.INITIAL,
    export=Export.BEST,
    patience=None,
    steps=12,
    epochs=None,
    sequences_per_step=4,
    sequence_length=16,
    replay_fraction=0.0,
    optimizer=OptimizerConfig(OptimizerKind.MUON, 0.01, 0.01, 0.1, None, None, (0.9, 0.95), 1e-8, 0.95, 5),
    schedule=ScheduleConfig(2, 0.5, 0.0),
    mask_documents=False,
    dropout=0.0,
    label_smoothing=0.0,
    ema_decay=None,
    gradient_clip=1.0,
    log_every_steps=5,
    sample_every_steps=6,
    validate_every_steps=4,
)
EVALUATION = EvaluationConfig(64, ("a",), 3, 1.0, 5)
RUNTIME = replace(load(Path(__file__).resolve().parents[2] / "presets" / "tiny.yaml").runtime, checkpoint_every_steps=5)
TOKENS = np.random.default_rng(0).integers(0, 30, 3000).astype(np.uint16)


class TrainerFactory:
    """Builds trainers that differ in a few things."""

    def __init__(self, model: ModelConfig, tokenizer: Tokenizer, hardware: Hardware) -> None:
        self.model, self.tokenizer, self.hardware = model, tokenizer, hardware

    def __call__(
        self, directory: Path, training: TrainingConfig = TRAINING, first_step: int = 0, micro_batch: int = 2
    ) -> Trainer:
        """A trainer that writes to `directory`, or goes on with what is there."""
        directory.mkdir(exist_ok=True)
        settings = Settings("pretrain", 1, self.model, training, EVALUATION, RUNTIME)
        batches = Batches(TOKENS, training.sequences_per_step, training.sequence_length, 1, "pretrain")
        windows = validation_windows(TOKENS, training.sequence_length, 64, "pretrain")
        data = TrainingData(self.tokenizer, 0, batches, windows)
        torch.manual_seed(1)
        model = LlamaForCausalLM(self.model, choose_execution(settings, data, self.hardware, Group.single()))
        optimizer = Optimizer(model, training.optimizer)
        journal = Journal(directory / "journal.jsonl")
        store = CheckpointStore(directory / "checkpoints", 2, FINGERPRINT)
        return Trainer(
            settings,
            data,
            Assembly(model, optimizer, self.hardware, Group.single(), micro_batch),
            Records(journal, store, lambda message, step: journal.event(step, message)),
            first_step,
        )


def run(trainer: Trainer) -> Trainer:
    """Train to the end."""
    with StopSignal() as stop:
        trainer.run(stop, ProgressBar("test", trainer.settings.steps, trainer.done))
    return trainer


def recorded(trainer: Trainer, kind: Kind) -> list[int]:
    """The steps of a kind of record."""
    return [record.step for record in trainer.journal.records() if record.kind == kind]
