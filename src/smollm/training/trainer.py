"""The training loop, the same for pretrain and finetune: steps, with records, validation, samples and checkpoints.

The trainer writes to the journal and to the checkpoint store, and does not know what reads them.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional

from smollm.device.seeding import key
from smollm.errors import CheckpointError, Interrupted, NonFinite
from smollm.model.generate import Sampler
from smollm.model.sharding import load_weights, total_norm
from smollm.state.journal import Kind
from smollm.state.tokens import token_bytes
from smollm.tracking import announce
from smollm.tracking.console import ProgressBar
from smollm.training.assembly import Assembly
from smollm.training.average import WeightAverage
from smollm.training.batches import BatchReader
from smollm.training.best import BestValidation, best_after
from smollm.training.checkpoint import Checkpoint, TrainerState
from smollm.training.data import TrainingData
from smollm.training.evaluate import Evaluator
from smollm.training.failure import measure_sequences
from smollm.training.loss_scale import LossScale
from smollm.training.micro_batch import out_of_memory
from smollm.training.records import Records
from smollm.training.schedule import learning_rate
from smollm.training.settings import Settings
from smollm.training.speed import SpeedMeter, rank_values
from smollm.training.step import Step
from smollm.training.stop import StopSignal

_STALLED_AFTER = 5
"""Validations in a row without a new best, after which a line says so."""


class Trainer:
    """Trains a model for the steps of one stage."""

    def __init__(
        self, settings: Settings, data: TrainingData, assembly: Assembly, records: Records, first_step: int = 0
    ) -> None:
        """
        Args:
            settings: of the stage.
            data: batches and held-out text.
            assembly: model, optimizer and hardware.
            records: journal, checkpoint store and log.
            first_step: steps of the previous stages; this stage's begin at first_step + 1.
        """
        self.settings, self.data, self.assembly, self.records = settings, data, assembly, records
        self.first_step = first_step
        self.model, self.hardware, self.group = assembly.model, assembly.hardware, assembly.group
        self.journal, self.store = records.journal, records.store
        self.loss_scale = LossScale(settings.stage, self.hardware, self.journal)
        self._optimizer_step = Step(assembly, self.loss_scale.scaler, settings.training.gradient_clip)
        decay = settings.training.ema_decay
        self._average = None if decay is None else WeightAverage(self.model, decay)
        self._reader = BatchReader(data.batches, self.group, self.hardware)
        self._sampler = Sampler(self.model, data.tokenizer, settings.evaluation, self.hardware)
        sizes = token_bytes(data.tokenizer)
        self._evaluator = Evaluator(data.held_out, sizes, assembly)
        self._pretrain_evaluator = (
            None if data.pretrain_held_out is None else Evaluator(data.pretrain_held_out, sizes, assembly)
        )
        self._speed = SpeedMeter(settings, self.hardware, self.group.size, self.journal.records())
        self.best: BestValidation | None = None
        self.done = 0
        """Steps done in this stage."""
        self._resumes = False
        self._stop = StopSignal()
        self._has_stop_request = False
        """Whether any rank had one when the losses of the last step were averaged."""

    @property
    def step(self) -> int:
        """Steps done, counted over all stages."""
        return self.first_step + self.done

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`, of this stage or, if this stage has not begun, of the previous one.

        Raises:
            CheckpointError: it belongs to another model or another kind of optimizer.
        """
        ours, theirs = (
            {name: value.shape for name, value in weights.items()}
            for weights in (self.model.weights(), checkpoint.weights)
        )
        if ours != theirs:
            odd = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            raise CheckpointError(
                f"{checkpoint.state.stage}'s checkpoint must be of the model that params.yaml describes, got "
                f"{theirs.get(odd)} for {odd}, not {ours.get(odd)}; run the whole pipeline with `dvc repro`"
            )
        state = checkpoint.state
        self._resumes = state.stage == self.settings.stage
        load_weights(self.model, checkpoint.weights if self._resumes else checkpoint.exported)
        if self._average is not None:
            self._average.load_state(checkpoint.exported)
        self.assembly.optimizer.load_state(checkpoint.moments)
        self.loss_scale.restore(state.loss_scale, state.clean_steps)
        if self._resumes:
            self.done, self.best = state.step - self.first_step, state.best

    def run(self, stop: StopSignal, progress: ProgressBar, on_pace: Callable[[float], None] = lambda _: None) -> None:
        """Train to the last step, or until patience runs out, with validation, samples and checkpoints on the way.

        Args:
            stop: asks to end early.
            progress: shown to the user.
            on_pace: called once, after the first few steps, with the seconds that a step takes; unless all are done.

        Raises:
            Interrupted: `stop` was signalled; the step was finished and saved.
            NonFinite: a loss or gradient is not finite; the step was not taken.
            TrainingError: a step runs out of memory, although the search for the micro-batch size did not.
            OSError: a checkpoint could not be written.
        """
        training, self._stop = self.settings.training, stop
        if not self._resumes:
            self._validate_start()
        while not self._has_ended():
            values = self._take_timed_step(on_pace)
            if self._has_all_steps() or self._is_due(training.validate_every_steps):
                self._validate()
            must_keep = self._has_ended() or self._is_best()
            if self.done == 1 or self._has_ended() or self._is_due(training.log_every_steps):
                self._record_step(values, progress)
            if must_keep or self._is_due(training.sample_every_steps):
                self._sample()
            signal = self._agreed_signal()
            if must_keep or signal or self._is_due(self.settings.runtime.checkpoint_every_steps):
                self._save()
            if signal or self._has_ended():
                self.store.wait()
            else:
                self.store.check()
            if signal and not self._has_ended():
                raise Interrupted(signal, self.step)
        self._record_end()

    def _validate_start(self) -> None:
        """Validate the weights that the stage starts from; save those of a previous stage, since they may stay best."""
        self._validate()
        if self.step > 0:
            self._sample()
            self._save()

    def _has_all_steps(self) -> bool:
        return self.done == self.settings.steps

    def _has_ended(self) -> bool:
        """Whether the last step is done, or `patience` validations in a row brought no new best."""
        since_best = self.best.validations_since if self.best else 0
        return self._has_all_steps() or since_best >= (self.settings.training.patience or math.inf)

    def _is_best(self) -> bool:
        """Whether the newest validation is the best so far, and of this step."""
        return self.best is not None and self.best.step == self.step

    def _is_due(self, every_steps: int) -> bool:
        return self.done % every_steps == 0

    def _agreed_signal(self) -> int:
        """The signal on which all ranks stop after this step, 0 if there is none.

        Averaging the losses of a step also tells all ranks whether one has a stop request; only then are the signals
        themselves exchanged.
        """
        if self.group.size > 1 and not self._has_stop_request:
            return 0
        return self.group.all_reduce(self._stop.received or 0, max)

    def _take_timed_step(self, on_pace: Callable[[float], None]) -> dict[str, float]:
        """Take the next step at its learning rate and time it; return the values to record."""
        training = self.settings.training
        began = time.perf_counter()
        rate = learning_rate(self.done + 1, self.settings.steps, training.optimizer.lr, training.schedule)
        try:
            loss, norm = self.take_step(rate)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.hardware, self.assembly.micro_batch, training.sequence_length) from error
        self.done += 1
        pace = self._speed.add(time.perf_counter() - began)
        if pace is not None and not self._has_all_steps():
            on_pace(pace)
        return {"train_loss": loss, "gradient_norm": norm, "learning_rate": rate}

    def _record_end(self) -> None:
        self.journal.append(Kind.END, self.step, reason="steps" if self._has_all_steps() else "patience")
        if self.best is not None and not self._has_all_steps():
            line = announce.stopped_early(self.settings.stage, self.best.validations_since, self.best.step)
            self.records.log(line, self.step)

    def _record_step(self, values: dict[str, float], progress: ProgressBar) -> None:
        self.journal.append(Kind.STEP, self.step, **values)
        speed = self._speed.record()
        self.journal.append(Kind.SPEED, self.step, **speed)
        shown = {"loss": f"{values['train_loss']:.3f}", "tokens/s": f"{speed['tokens_per_second']:,.0f}"}
        progress.update(self.done - progress.done, **shown)

    def take_step(self, rate: float) -> tuple[float, float]:
        """Take one optimizer step on the next batch; return its loss and the gradient's norm before clipping.

        Raises:
            NonFinite: either is not finite; the step is not taken.
            TrainingError: fp16 overflows at every loss scale.
        """
        step = self.step + 1
        seeds = self._reader.dropout_seeds(self.done + 1) if self.settings.training.dropout else None
        loss_and_norm = self._optimizer_step.gradient(self._reader.read(self.done + 1), seeds)
        self._reader.prefetch(self.done + 2)
        values = functional.pad(loss_and_norm, (0, 1), value=float(self._stop.received is not None))
        loss, norm, stop_requests = (self.group.sum(values) / self.group.size).tolist()
        self._has_stop_request = stop_requests > 0
        has_overflowed = not math.isfinite(norm)
        if not math.isfinite(loss) or (has_overflowed and not self.loss_scale.is_used):
            self.assembly.optimizer.zero_grad()
            raise self._non_finite(
                step,
                f"loss and gradient must be finite, got loss {loss} and gradient norm {norm} at step {step}, which was "
                f"not taken; its text is in reports/{self.settings.stage}/failure.json and in MLflow",
                loss=loss,
                gradient_norm=norm,
                learning_rate=rate,
                sequences=measure_sequences(self.model, self.data.batches, self.done + 1, self.hardware),
            )
        self.loss_scale.record(step, has_overflowed)
        self._optimizer_step.update(rate, skip=has_overflowed)
        if self._average is not None:
            self._average.update(self.done + 1)
        return loss, norm

    def _averaged_weights(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that the stage exports: the average, if it keeps one."""
        return nullcontext() if self._average is None else self._average.in_use()

    def _non_finite(self, step: int, what: str, **values: object) -> NonFinite:
        """The error for a non-finite loss, gradient or weight at `step`."""
        facts = {"precision": self.hardware.precision.value, "loss_scale": self.loss_scale.value()}
        return NonFinite(
            f"{self.settings.stage}: {what}; lower {self.settings.stage}.optimizer.lr",
            {"step": step, "sequences": [], **facts, **values},
        )

    def _validate(self) -> None:
        with self._averaged_weights():
            result = self._evaluator(self.model)
            pretrain_values = {}
            if self._pretrain_evaluator is not None:
                other = self._pretrain_evaluator(self.model)
                pretrain_values = {"pretrain_loss": other.loss, "pretrain_bits_per_byte": other.bits_per_byte}
        if self.group.size > 1:
            values = rank_values(self.group, self.hardware, result.tokens_per_second, self.model.execution.sharded)
            self.journal.append(Kind.RANKS, self.step, **values)
        if not math.isfinite(result.loss):
            raise self._non_finite(
                self.step, f"the validation loss must be finite, got {result.loss} after step {self.step}"
            )
        self.best = best = best_after(self.best, self.step, result.bits_per_byte)
        if best.validations_since == _STALLED_AFTER:
            line = announce.validation_stalled(_STALLED_AFTER, best.step, best.bits_per_byte, result.bits_per_byte)
            self.records.log(line, self.step)
        self.journal.append(
            Kind.VALIDATION,
            self.step,
            loss=result.loss,
            bits_per_byte=result.bits_per_byte,
            best_bits_per_byte=best.bits_per_byte,
            best_step=best.step,
            **pretrain_values,
        )

    def _sample(self) -> None:
        """Record samples: rank 0 alone, unless the weights are sharded. The others wait for it in the next step."""
        settings = self.settings
        if not self.group.is_rank_zero and not self.model.execution.sharded:
            return
        with self._averaged_weights():
            texts = self._sampler(key(settings.seed, "sample", settings.stage, self.step))
        self.journal.append(Kind.SAMPLE, self.step, prompts=list(settings.evaluation.prompts), texts=texts)

    def _save(self) -> None:
        if not torch.isfinite(total_norm(self.model.parameters())):
            raise self._non_finite(self.step, f"all weights must be finite, got non-finite ones after step {self.step}")
        self.journal.sync()
        state = TrainerState(
            step=self.step,
            stage=self.settings.stage,
            fingerprint=self.store.fingerprint,
            loss_scale=self.loss_scale.value(),
            clean_steps=self.loss_scale.clean_steps(),
            best=self.best,
        )
        average = {} if self._average is None else self._average.state()
        self.store.save(Checkpoint(state, self.model.weights(), self.assembly.optimizer.state(), average))
