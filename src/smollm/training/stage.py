"""A training stage from params to published outputs: what `pretrain` and `finetune` both are."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer

from smollm.config.evaluation import EvaluationConfig
from smollm.config.file import near_divisors
from smollm.config.model import ModelConfig
from smollm.config.runtime import RuntimeConfig
from smollm.config.tracking import TrackingConfig
from smollm.config.training import TrainingConfig
from smollm.device import hardware
from smollm.device.group import Group
from smollm.device.seeding import seed_everything
from smollm.errors import CheckpointError, NonFinite, TrainingError
from smollm.model import export
from smollm.model.throughput import flops_per_token, parameter_count
from smollm.operate import launch
from smollm.operate.preflight import Preflight, check_vocabulary
from smollm.stage import report
from smollm.stage import run as pipeline
from smollm.stage.run import StageRun
from smollm.state.files import dvc_digest, replace_directory
from smollm.state.journal import HARDWARE, Journal, Record
from smollm.state.tokens import TRAIN, VALIDATION, open_tokenizer, open_tokens, read_manifest, token_bytes
from smollm.state.workspace import Workspace
from smollm.tracking import announce, provenance, summary
from smollm.tracking.console import Progress, say
from smollm.tracking.observer import RunInputs
from smollm.tracking.run_record import Dataset
from smollm.training import checkpoint, failure
from smollm.training.assembly import assemble
from smollm.training.batches import Batches, Ids, validation_windows
from smollm.training.checkpoint import Checkpoint, CheckpointStore
from smollm.training.evaluate import Evaluator
from smollm.training.trainer import Plan, StopSignal, Trainer


@dataclass(frozen=True)
class TrainingStage:
    """All that one training stage reads of the params."""

    name: str
    workspace: Workspace
    seed: int
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    runtime: RuntimeConfig
    tracking: TrackingConfig
    continues: str | None = None
    """The stage whose checkpoint this one starts from."""

    def run(self) -> None:
        """Train, publish, track; in as many processes as the runtime says.

        Raises:
            PipelineError: with a line for the user.
        """
        launch.run(self.name, self.runtime, self.training.sequences_per_step, self._run)

    def _run(self, group: Group) -> None:
        if group.is_rank_zero:
            self._lead(group)
        else:
            self._follow(group)

    def _lead(self, group: Group) -> None:
        """Train with the group, and keep the books."""
        is_told = False

        def work(run: StageRun) -> None:
            nonlocal is_told
            group.broadcast(is_told := True)
            if (killed := launch.starts_before()) > 0:
                run.log(announce.processes_restarted(killed, self.runtime.max_restarts))
            self._work(group, _Desk.of(run, self.runtime.keep_checkpoints), run)

        pipeline.run_stage(self.name, self.workspace, self.tracking, self._inputs, work, self._publish)
        if not is_told:
            group.broadcast(False)  # it was done before
        group.all_gather(None)  # nobody leaves before all is published

    def _follow(self, group: Group) -> None:
        """Train with the group, if there is anything to do."""
        with TemporaryDirectory() as directory:
            if group.broadcast(False):
                self._work(group, _Desk.nowhere(Path(directory)))
        group.all_gather(None)

    @property
    def _tokens(self) -> Path:
        return self._tokens_of(self.name)

    def _tokens_of(self, stage: str) -> Path:
        return self.workspace.directory / "data" / "tokens" / stage

    def _start(self) -> Checkpoint | None:
        """The checkpoint that this stage starts from."""
        if self.continues is None:
            return None
        return checkpoint.load(self.workspace.directory / "checkpoints" / self.continues)

    def _load_tokenizer(self) -> tuple[Tokenizer, dict[str, Any]]:
        """The tokenizer and the manifest of this stage's text."""
        manifest = read_manifest(self._tokens)
        check_vocabulary(manifest["vocab_size"], self.model)
        return open_tokenizer(self.workspace.directory / "data/tokenizer/tokenizer.json"), manifest

    def _work(self, group: Group, desk: "_Desk", run: StageRun | None = None) -> None:
        """Train as one of `group`; `run` is rank 0's."""
        self._check_group(group)
        if run is not None:
            self._failure(run).unlink(missing_ok=True)  # of an attempt before
        seed_everything(self.seed)
        machine = hardware.choose(self.runtime, self.training.steps)
        found = group.all_gather(f"{machine.device.type} in {machine.precision.value}")
        if len(set(found)) > 1:
            raise TrainingError(
                f"{self.name}: all processes must compute alike, got {' and '.join(sorted(set(found)))}; "
                "set runtime.device and runtime.precision to what all machines have"
            )
        start = self._start() if group.is_rank_zero else None
        first_step = group.broadcast(start.state.step if start else 0)
        self._announce(desk, machine, first_step, group)
        limit = Preflight(
            self.name, self.model, self.training, self.runtime.max_hours, self.workspace.directory / "presets"
        )
        resumed = desk.store.newest(lambda line: desk.log(line, first_step))
        if group.is_rank_zero:
            limit.check_disk(desk.store.directory, desk.store.keep)
            left = self.training.steps - (resumed.state.step - first_step if resumed else 0)
            limit.check_bound(left, machine, group.size)
        trainer = self._build(desk, machine, first_step, resumed.state.step if resumed else first_step, group)
        given = checkpoint.shared(group, resumed or start)
        if given:
            trainer.restore(given)
        if resumed:
            desk.log(announce.resumed(resumed.state.step), resumed.state.step)
        elif start:
            desk.log(announce.started_from(start.state.stage, first_step), first_step)
        del given, resumed, start  # as large as the model and its moments
        self._train(desk, trainer, limit, run)

    def _check_group(self, group: Group) -> None:
        """Refuse a group that cannot share a step evenly, or whose machines are not of one mind.

        Raises:
            TrainingError: it is.
        """
        sequences = self.training.sequences_per_step
        if sequences % group.size:
            near = " or ".join(map(str, near_divisors(sequences, group.size)))
            raise TrainingError(
                f"{self.name}: as many processes must train as divide the {sequences} sequences of a step, got "
                f"{group.size} on all machines together; use {near}"
            )
        # one machine has the same files for all; what another stage leaves behind is rank 0's to read
        is_first = group.local_rank == 0 and group.size > group.local_size
        own = self.workspace.stage(self.name)["deps"] if is_first else []
        inputs = {
            path: dvc_digest(self.workspace.directory / path) for path in own if not path.startswith("checkpoints")
        }
        of_machine = ("device", "processes", "max_restarts", "max_hours")
        runtime = {f"runtime.{k}": str(v) for k, v in asdict(self.runtime).items() if k not in of_machine}
        versions = {"torch": torch.__version__}
        found = group.all_gather({**self.workspace.params(self.name), **inputs, **runtime, **versions})
        for rank, other in enumerate(found):
            odd = provenance.differences(other, found[0])
            if odd:
                raise TrainingError(
                    f"{self.name}: all machines must have the same params, code, data and torch, got {odd[0]} where "
                    f"rank {rank} runs, unlike rank 0; bring them to one commit and `dvc pull`"
                )

    def _build(self, desk: "_Desk", machine: hardware.Hardware, first_step: int, done: int, group: Group) -> Trainer:
        """A trainer at the stage's beginning, with the micro-batch that fits; it will go on from step `done`."""
        text, manifest = self._load_tokenizer()
        length = self.training.sequence_length
        tokens = open_tokens(self._tokens / f"{TRAIN}.bin", manifest["dtype"])
        batches = Batches(tokens, self.training.sequences_per_step, length, self.seed, self.name)
        windows = [self._held_out(stage) for stage in (self.name, self.continues) if stage]

        def warn(line: str) -> None:
            desk.log(line, first_step)

        end = int(manifest["end_of_text_id"])
        model, optimizer, micro_batch = assemble(
            self.model, self.training, self.runtime, batches, end, machine, warn, group
        )
        self._note_hardware(desk, machine, model.is_compiled, micro_batch, done, group)
        plan = Plan(
            self.name,
            desk.store.fingerprint,
            self.seed,
            first_step,
            self.training,
            self.evaluation,
            self.runtime.checkpoint_every_steps,
        )
        evaluators = [Evaluator(one, token_bytes(text), micro_batch, machine, group) for one in windows]
        own, of_pretrain = evaluators[0], evaluators[1] if len(evaluators) > 1 else None
        return Trainer(
            plan, model, optimizer, batches, own, text, machine, desk.journal, desk.store, of_pretrain, group
        )

    def _held_out(self, stage: str) -> Ids:
        """Windows of a stage's held-out text, as long as this one's sequences."""
        directory = self._tokens_of(stage)
        tokens = open_tokens(directory / f"{VALIDATION}.bin", read_manifest(directory)["dtype"])
        most = self.evaluation.validation_tokens
        return validation_windows(tokens, self.training.sequence_length, most, stage, self.name)

    def _train(self, desk: "_Desk", trainer: Trainer, limit: Preflight, run: StageRun | None) -> None:
        """Train, saying how long it takes, and writing down a step that fails."""

        def on_pace(seconds: float) -> None:
            if run is None:
                return
            steps = self.training.steps - trainer.done
            limit.check_pace(steps, seconds)
            desk.log(announce.pace(steps, seconds), trainer.step)

        progress = Progress(self.name, self.training.steps, trainer.done, is_shown=run is not None)
        with closing(trainer.store), closing(progress), StopSignal(second_kills=trainer.group.size == 1) as stop:
            try:
                trainer.run(stop, progress, on_pace)
            except NonFinite as error:
                if run is not None:
                    path = self._failure(run)
                    failure.write(path, error.values, trainer.batches, self._tokens, trainer.tokenizer)
                    run.artifacts["failure.json"] = path
                raise
        if run is None:
            return
        speed = report.speed_metrics(desk.journal.records())
        # the last point of a curve says little of the speed of a run
        desk.journal.append("result", trainer.step, **{"speed/median_tokens_per_second": speed["tokens_per_second"]})

    def _failure(self, run: StageRun) -> Path:
        return run.reports / "failure.json"

    def _announce(self, desk: "_Desk", machine: hardware.Hardware, first_step: int, group: Group) -> None:
        """One line on what the stage will do."""
        plan = announce.training_plan(
            self.training.steps,
            first_step + self.training.steps,
            self.training.tokens_per_step,
            flops_per_token(self.model, self.training.sequence_length),
            parameter_count(self.model),
            group.size,
        )
        computer = announce.machine(machine.name, machine.device.type, machine.precision.value, machine.compile)
        desk.log(f"{plan}; {computer}", first_step)

    def _note_hardware(
        self, desk: "_Desk", machine: hardware.Hardware, compiled: bool, micro_batch: int, step: int, group: Group
    ) -> None:
        # with a mask the choice is another, and torch does not tell
        kernel = (
            "masked"
            if self.training.mask_documents
            else machine.attention_kernel(
                self.model.num_attention_heads,
                self.model.num_key_value_heads,
                self.model.head_dim,
                self.training.sequence_length,
            )
        )
        desk.journal.append(
            HARDWARE,
            step,
            processes=group.size,
            device=machine.device.type,
            device_name=machine.name,
            precision=machine.precision.value,
            compiled=compiled,
            micro_batch_size=micro_batch,
            attention_kernel=kernel,
            torch=torch.__version__,
        )

    def _publish(self, run: StageRun) -> None:
        directory = self.workspace.directory
        store = CheckpointStore(run.state.directory / "checkpoints", 1, run.state.fingerprint)
        newest = store.newest(run.log)
        last = max(record.step for record in run.state.journal.records() if record.kind == "step")
        if newest is None or newest.state.step != last:
            run.state.mark_incomplete()
            raise CheckpointError(
                f"{self.name}: the last checkpoint must be whole, got a damaged one; "
                "`dvc repro` goes on from the one before"
            )
        weights = newest.weights
        text, manifest = self._load_tokenizer()
        replace_directory(store.newest_directory(), directory / "checkpoints" / self.name)
        export.write_model(directory / "models" / self.name, self.model, weights, text, int(manifest["end_of_text_id"]))
        records = run.state.journal.records()
        facts = {
            "parameters": parameter_count(self.model),
            "tokens": self.training.steps * self.training.tokens_per_step,
            "corpus": str(manifest["documents_sha256"])[:16],
        }
        report.write_training(run.reports, f"{self.name}: loss", records, facts)
        run.facts |= report.speed_metrics(records)
        run.facts["device"] = next(r.values["device_name"] for r in reversed(records) if r.kind == HARDWARE)
        names = ("metrics.json", "training_log.txt", "loss.svg", "losses.tsv", "validation.tsv", "speed.tsv")
        run.artifacts |= {name: run.reports / name for name in names}
        if self.continues is not None:
            run.registered_model = self.tracking.registered_model
        if self.tracking.store_weights:
            model = directory / "models" / self.name
            run.artifacts |= {f"model/{file.name}": file for file in model.iterdir()}
        self._say_summary(run, records)

    def _say_summary(self, run: StageRun, records: list[Record]) -> None:
        samples = [r.values["prompts"][0] + r.values["texts"][0] for r in records if r.kind == "sample"]
        sample = samples[-1] if samples else None
        say(summary.training(self.name, report.training_metrics(records), run.facts, sample))

    def _inputs(self, run: StageRun) -> RunInputs:
        settings = {
            "seed": self.seed,
            "model": self.model,
            self.name: self.training,
            "evaluation": self.evaluation,
            "runtime": self.runtime,
        }
        uses = [(self.name, TRAIN, "training"), (self.name, VALIDATION, "validation")]
        uses += [(self.continues, VALIDATION, "validation")] if self.continues else []
        datasets = [
            Dataset(
                f"{stage}/{side}",
                run.state.inputs[f"data/tokens/{stage}"] or "",
                context,
                f"data/tokens/{stage}/{side}.bin",
                read_manifest(self._tokens_of(stage))[side],
            )
            for stage, side, context in uses
        ]
        parent = self.workspace.directory / "reports" / self.continues / "run.json" if self.continues else None
        return RunInputs(settings, datasets, parent)


@dataclass(frozen=True)
class _Desk:
    """Where a trainer writes."""

    journal: Journal
    store: CheckpointStore
    log: Callable[[str, int], None]
    """A line for the user and for the training log, and its step."""

    @classmethod
    def of(cls, run: StageRun, keep: int) -> "_Desk":
        """Rank 0's."""
        state = run.state
        return cls(state.journal, CheckpointStore(state.directory / "checkpoints", keep, state.fingerprint), run.log)

    @classmethod
    def nowhere(cls, directory: Path) -> "_Desk":
        """Another process's, in a folder that is thrown away."""
        return cls(Journal(directory / "journal.jsonl"), CheckpointStore(directory, 1, ""), lambda *_: None)
