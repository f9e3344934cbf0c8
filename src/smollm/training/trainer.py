"""One step and one loop, for pretraining and finetuning alike.

The trainer writes to the journal and to the checkpoint store, and knows of nothing else that is
done with either.
"""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils import get_total_norm

from smollm.config.evaluation import EvaluationConfig
from smollm.config.runtime import Precision
from smollm.config.training import TrainingConfig
from smollm.device.group import Group
from smollm.device.hardware import Hardware, seconds_since_start
from smollm.device.seeding import key
from smollm.errors import CheckpointError, Interrupted, NonFinite, TrainingError
from smollm.model.generate import Sampler
from smollm.model.llama import LlamaForCausalLM
from smollm.model.sharding import full_tensor, shard_like
from smollm.model.throughput import flops_per_token, model_flops_utilization, peak_tflops
from smollm.state.journal import Journal
from smollm.tracking.console import Progress
from smollm.training.batches import Batches
from smollm.training.checkpoint import Checkpoint, CheckpointStore, TrainerState
from smollm.training.evaluate import Evaluator
from smollm.training.failure import sequences_alone
from smollm.training.optim import Optimizer
from smollm.training.schedule import learning_rate
from smollm.training.step import Step

_MOST_SKIPPED = 50
"""A loss scale of 2^16 has been halved to nothing long before."""

_PACE_STEPS, _PACE_SECONDS = 20, 30.0
"""After so many steps or seconds the pace is known: that of the fastest step but the first, which warms up."""


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a request to stop after the step; a second one kills."""

    def __init__(self, second_kills: bool = True) -> None:
        """
        Args:
            second_kills: not in a group, where a signal to all of it comes from its agent too.
        """
        self.second_kills = second_kills
        self.received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL if self.second_kills else signal.SIG_IGN)


@dataclass(frozen=True)
class Plan:
    """What a stage trains, apart from the model and where it runs."""

    stage: str
    fingerprint: str
    seed: int
    first_step: int
    """Steps done by the stages before: this one's begin at first_step + 1."""
    training: TrainingConfig
    evaluation: EvaluationConfig
    checkpoint_every_steps: int


class Trainer:
    """Trains a model for the steps of one stage."""

    def __init__(
        self,
        plan: Plan,
        model: LlamaForCausalLM,
        optimizer: Optimizer,
        batches: Batches,
        evaluator: Evaluator,
        tokenizer: Tokenizer,
        hardware: Hardware,
        journal: Journal,
        store: CheckpointStore,
        pretrain_evaluator: Evaluator | None = None,
        group: Group | None = None,
    ) -> None:
        """
        Args:
            evaluator: of the stage's own held-out text.
            journal, store: rank 0's are kept; what the others write into theirs is of no use.
            pretrain_evaluator: of pretrain's, in a stage that goes on from there: what it forgets of it.
            group: the processes that train together; this one alone, if none is given.
        """
        self.group = group or Group.single()
        self.plan, self.model, self.optimizer = plan, model, optimizer
        self.batches, self.evaluator, self.tokenizer = batches, evaluator, tokenizer
        self.pretrain_evaluator = pretrain_evaluator
        self.hardware, self.journal, self.store = hardware, journal, store
        scaled = hardware.precision is Precision.FP16
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=scaled)
        self._arithmetic = Step(
            model, optimizer, self.scaler, hardware, evaluator.batch, plan.training.gradient_clip, self.group
        )
        self._sampler = Sampler(model, tokenizer, plan.evaluation, hardware)
        self._fetched: tuple[int, Tensor] | None = None
        """A step, and its batch, read before its time."""
        self.done = 0
        """Steps done in this stage."""
        earlier = journal.records()
        self._skips = [record.step for record in earlier if record.kind == "skip"]
        self._bits_per_byte = {r.step: r.values["bits_per_byte"] for r in earlier if r.kind == "validation"}
        self._skipped = 0
        """Steps skipped in a row."""
        self._useful_seconds, self._earlier_seconds = self._seconds_before()

    @property
    def step(self) -> int:
        """Steps done, counted over all stages."""
        return self.plan.first_step + self.done

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`: this stage's own, or the last one of the stage before.

        Raises:
            CheckpointError: it belongs to another model or another kind of optimizer.
        """
        weights = self.model.weights()
        shapes, theirs = ({name: value.shape for name, value in w.items()} for w in (weights, checkpoint.weights))
        if shapes != theirs:
            odd = min(name for name in shapes.keys() | theirs.keys() if shapes.get(name) != theirs.get(name))
            raise CheckpointError(
                f"{checkpoint.state.stage}'s checkpoint must be of the model that params.yaml describes, got "
                f"{theirs.get(odd)} for {odd}, not {shapes.get(odd)}; run the whole pipeline with `dvc repro`"
            )
        with torch.no_grad():
            for name, value in checkpoint.weights.items():
                weights[name].copy_(shard_like(value, weights[name]))
        self.optimizer.load_state(checkpoint.moments)
        state = checkpoint.state
        self.done = state.step - self.plan.first_step
        if self.scaler.is_enabled() and state.loss_scale is not None:
            self.scaler.load_state_dict(
                {**self.scaler.state_dict(), "scale": state.loss_scale, "_growth_tracker": state.clean_steps}
            )

    def run(self, stop: StopSignal, progress: Progress, on_pace: Callable[[float], None] = lambda _: None) -> None:
        """Train to the last step, measuring, sampling and saving on the way.

        Args:
            stop: says when to end early.
            progress: shown to the user.
            on_pace: called once with the seconds that a step takes, after the first few.

        Raises:
            Interrupted: `stop` was signalled; the step was finished and saved.
            NonFinite: a loss or gradient is not finite; the step was not taken.
            OSError: a checkpoint could not be written.
        """
        training = self.plan.training
        if self.done == 0:
            self._validate()
        window: list[float] = []
        pace: list[float] | None = []
        while self.done < training.steps:
            began = time.perf_counter()
            rate = learning_rate(self.done + 1, training.steps, training.optimizer.lr, training.schedule)
            loss, norm = self.take_step(rate)
            self.done += 1
            last = self.done == training.steps
            window.append(time.perf_counter() - began)
            self._useful_seconds += window[-1]
            if pace is not None:
                pace.append(window[-1])
                if len(pace) == _PACE_STEPS or (len(pace) > 2 and sum(pace) > _PACE_SECONDS):
                    on_pace(min(pace[1:]))
                    pace = None
            if self.done == 1 or last or self.done % training.log_every_steps == 0:
                self.journal.append("step", self.step, train_loss=loss, gradient_norm=norm, learning_rate=rate)
                speed = self._record_speed(window)
                window.clear()
                progress.update(self.done - progress.done, loss=f"{loss:.3f}", **{"tokens/s": f"{speed:,.0f}"})
            if last or self.done % training.validate_every_steps == 0:
                self._validate()
            if last or self.done % training.sample_every_steps == 0:
                self._sample()
            stopped = self.group.all_reduce(stop.received or 0, max)
            if last or stopped or self.done % self.plan.checkpoint_every_steps == 0:
                self._save()
            self.store.check()
            if last or stopped:
                self.store.wait()
            if stopped and not last:
                raise Interrupted(stopped, self.step)

    def take_step(self, rate: float) -> tuple[float, float]:
        """One optimizer step on the next batch; its loss and the gradient's norm before clipping.

        Raises:
            NonFinite: either is not finite; the step is not taken.
            TrainingError: fp16 overflows whatever the loss scale.
        """
        numbers = self._arithmetic.gradient(self._batch())
        self._fetch_next()
        loss, norm = (self.group.sum(numbers.clone()) / self.group.size).tolist()
        has_overflown = not math.isfinite(norm)
        if not math.isfinite(loss) or (has_overflown and not self.scaler.is_enabled()):
            self.optimizer.zero_grad()
            raise self._non_finite(
                self.step + 1,
                f"loss and gradient must be finite, got loss {loss} and gradient norm {norm} at step "
                f"{self.step + 1}, which was not taken",
                sequences_alone(self.model, self.batches, self.done + 1, self.hardware),
                loss=loss,
                gradient_norm=norm,
                learning_rate=rate,
            )
        if has_overflown:
            self._note_skip()
        else:
            self._skipped = 0
        self._arithmetic.update(rate, skip=has_overflown)
        return loss, norm

    def _batch(self) -> Tensor:
        """Inputs and targets of the next step, (2, B, T)."""
        step, batch = self._fetched or (0, None)
        return batch if batch is not None and step == self.done + 1 else self._fetch(self.done + 1)

    def _fetch(self, step: int) -> Tensor:
        mine = self.group.local_slice(self.batches.sequences)
        batch = torch.from_numpy(np.stack([ids[mine] for ids in self.batches(step)]))
        return batch.pin_memory() if self.hardware.device.type == "cuda" else batch

    def _fetch_next(self) -> None:
        """Read the batch of the step after this one, while the GPU computes."""
        if self.hardware.device.type == "cuda":
            self._fetched = (self.done + 2, self._fetch(self.done + 2))

    def _note_skip(self) -> None:
        """fp16's loss scale was too large: no part of the optimizer steps, and the scale is lowered."""
        step = self.step + 1
        total = 1 + len({one for one in self._skips if one < step})
        self._skips.append(step)
        self.journal.append("skip", step, loss_scale=self.scaler.get_scale(), total=total)
        self._skipped += 1
        if self._skipped == _MOST_SKIPPED:
            raise TrainingError(
                f"{self.plan.stage}: the gradient must be finite at some loss scale, got {_MOST_SKIPPED} steps "
                f"in a row without, up to step {step}; set runtime.precision to fp32 or bf16"
            )

    def _non_finite(self, step: int, what: str, sequences: list[dict[str, Any]], **values: object) -> NonFinite:
        """The error for numbers of `step` that are not finite."""
        stage = self.plan.stage
        where = f"; its text is in reports/{stage}/failure.json and in MLflow" if sequences else ""
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return NonFinite(
            f"{stage}: {what}{where}; lower {stage}.optimizer.lr",
            {
                "step": step,
                **values,
                "precision": self.hardware.precision.value,
                "loss_scale": scale,
                "sequences": sequences,
            },
        )

    def _seconds_before(self) -> tuple[float, float]:
        """What earlier processes of the stage recorded: seconds in optimizer steps, and seconds lived."""
        speeds = [record.values for record in self.journal.records() if record.kind == "speed"]
        return (speeds[-1]["useful_seconds"], speeds[-1]["lived_seconds"]) if speeds else (0.0, 0.0)

    def _record_speed(self, window: list[float]) -> float:
        """Journal the speed over the steps since the last record; tokens per second."""
        seconds = sum(window) / len(window)
        lived = self._earlier_seconds + seconds_since_start()
        tokens_per_second = self.plan.training.tokens_per_step / seconds
        peak = peak_tflops(self.hardware.name) if self.hardware.device.type == "cuda" else None
        flops = flops_per_token(self.model.config, self.plan.training.sequence_length)
        mfu = None if peak is None else model_flops_utilization(tokens_per_second, flops, peak * self.group.size)
        self.journal.append(
            "speed",
            self.step,
            tokens_per_second=tokens_per_second,
            step_ms=1000 * seconds,
            mfu=mfu,
            goodput=self._useful_seconds / lived,
            useful_seconds=self._useful_seconds,
            lived_seconds=lived,
            peak_memory_gib=self.hardware.peak_memory_gib(),
        )
        return tokens_per_second

    def _validate(self) -> None:
        result = self.evaluator(self.model)
        self._record_ranks(result.tokens_per_second)
        if not math.isfinite(result.loss):
            raise self._non_finite(
                self.step, f"the validation loss must be finite, got {result.loss} after step {self.step}", []
            )
        self._bits_per_byte[self.step] = result.bits_per_byte
        best = min(value for step, value in self._bits_per_byte.items() if step <= self.step)
        of_pretrain = {}
        if self.pretrain_evaluator is not None:
            other = self.pretrain_evaluator(self.model)
            of_pretrain = {"pretrain_loss": other.loss, "pretrain_bits_per_byte": other.bits_per_byte}
        self.journal.append(
            "validation",
            self.step,
            loss=result.loss,
            bits_per_byte=result.bits_per_byte,
            best_bits_per_byte=best,
            **of_pretrain,
        )

    def _record_ranks(self, speed: float) -> None:
        """Journal how the processes of a group differ; validation, unlike a step, waits for nobody.

        Where weights are divided it does, and nobody is slower than another.
        """
        if self.group.size == 1:
            return
        found = self.group.all_gather((speed, self.hardware.peak_memory_gib()))
        speeds, memory = ([values[index] for values in found] for index in (0, 1))
        slowest = min(range(self.group.size), key=lambda rank: speeds[rank])
        of_speed = {
            "slowest_rank": slowest,
            "slowest_tokens_per_second": speeds[slowest],
            "fastest_tokens_per_second": max(speeds),
        }
        self.journal.append(
            "ranks",
            self.step,
            **({} if self.model.is_sharded else of_speed),
            least_memory_gib=min(memory),
            most_memory_gib=max(memory),
        )

    def _sample(self) -> None:
        plan = self.plan
        texts = self._sampler(key(plan.seed, "sample", plan.stage, self.step))
        self.journal.append("sample", self.step, prompts=list(plan.evaluation.prompts), texts=texts)

    def _save(self) -> None:
        if not torch.isfinite(full_tensor(get_total_norm(self.model.parameters()))):
            raise self._non_finite(self.step, f"all weights must be finite, got others after step {self.step}", [])
        self.journal.sync()
        scaler = self.scaler.state_dict()
        state = TrainerState(
            step=self.step,
            stage=self.plan.stage,
            fingerprint=self.plan.fingerprint,
            loss_scale=scaler.get("scale"),
            clean_steps=int(scaler.get("_growth_tracker", 0)),
        )
        self.store.save(Checkpoint(state, self.model.weights(), self.optimizer.state()), self.group.is_rank_zero)
