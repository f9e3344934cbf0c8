"""A training stage, `pretrain` or `finetune`, from params to published outputs."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from smollm.config.tracking import TrackingConfig
from smollm.device import hardware
from smollm.device.group import Group
from smollm.device.seeding import seed_everything
from smollm.errors import NonFinite
from smollm.model.throughput import flops_per_token, parameter_count
from smollm.operate import launch
from smollm.operate.preflight import Preflight, check_vocabulary
from smollm.stage import report
from smollm.stage.run import StageRun, run_stage
from smollm.state.journal import HARDWARE
from smollm.state.tokens import TRAIN, VALIDATION, read_manifest
from smollm.state.workspace import Workspace
from smollm.tracking import announce
from smollm.tracking.console import ProgressBar
from smollm.tracking.observer import RunInputs
from smollm.tracking.run_record import Dataset
from smollm.training import checkpoint, failure
from smollm.training.agreement import check_group, check_hardware, check_machines
from smollm.training.assembly import Assembly, assemble
from smollm.training.checkpoint import LAST, Checkpoint
from smollm.training.data import TrainingData, token_directory
from smollm.training.publish import Publisher
from smollm.training.records import Records
from smollm.training.settings import Settings
from smollm.training.stop import StopSignal
from smollm.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingStage:
    """Trains, publishes and tracks one stage, in as many processes as `runtime` says."""

    settings: Settings
    workspace: Workspace
    tracking: TrackingConfig
    continues: str | None = None
    """The stage whose checkpoint this one starts from."""

    def run(self) -> None:
        """Run the stage.

        Raises:
            PipelineError: with a line for the user.
        """
        settings = self.settings
        launch.run(settings.stage, settings.runtime, settings.training.sequences_per_step, self._run)

    def _run(self, group: Group) -> None:
        """Run the stage as one process of `group`: rank 0 writes, the others train whenever it does."""
        settings, runtime = self.settings, self.settings.runtime

        def work(run: StageRun) -> None:
            group.broadcast(True)
            if restarts := launch.count_restarts():
                run.log(announce.processes_restarted(restarts, runtime.max_restarts))
            self._train(group, Records.of_rank_zero(run.state, runtime.keep_checkpoints, run.log), run)

        if group.is_rank_zero:
            publish = Publisher(settings, self.tracking, is_final=self.continues is not None)
            run_stage(settings.stage, self.workspace, self.tracking, self._inputs, work, publish)
            group.broadcast(False)
        else:
            while group.broadcast(True):
                self._train(group, Records.of_other_rank())
        group.all_gather(None)  # no rank leaves before all know that the outputs are published

    def _train(self, group: Group, records: Records, run: StageRun | None = None) -> None:
        """Train as one process of `group`; `run` is rank 0's."""
        settings = self.settings
        check_group(settings, group)
        check_machines(settings, self.workspace, group)
        self._check_vocabulary()
        seed_everything(settings.seed)
        machine = hardware.choose(settings.runtime, settings.steps)
        check_hardware(settings, machine, group)

        start = self._start() if group.is_rank_zero else None
        first_step = group.broadcast(self._steps_before() if group.is_rank_zero else 0)
        self._announce(records, machine, first_step, group)
        resumed = records.store.newest(lambda line: records.log(line, first_step))
        done = resumed.state.step - first_step if resumed else 0
        preflight = self._check_preflight(records, machine, settings.steps - done, group)

        data = TrainingData.open(self.workspace.directory, settings, self.continues)
        assembly = assemble(settings, data, machine, group, lambda line: records.log(line, first_step))
        self._record_hardware(records, assembly, first_step + done)
        trainer = Trainer(settings, data, assembly, records, first_step)
        state = checkpoint.broadcast(group, resumed or start)
        if state:
            trainer.restore(state)
        if resumed:
            records.log(announce.resumed(resumed.state.step), resumed.state.step)
        elif start:
            records.log(announce.started_from(start.state.stage, start.state.step), first_step)
        del state, resumed, start  # as large as the model and its moments
        self._loop(trainer, preflight, run)

    def _check_vocabulary(self) -> None:
        manifest = read_manifest(token_directory(self.workspace.directory, self.settings.stage))
        check_vocabulary(manifest["vocab_size"], self.settings.model)

    def _start(self) -> Checkpoint | None:
        """The checkpoint that this stage starts from."""
        if self.continues is None:
            return None
        return checkpoint.load(self._checkpoints_before() / self.settings.training.start.value)

    def _steps_before(self) -> int:
        """Where this stage's steps count from: the last step of the previous stage, even if `start` is its best."""
        return 0 if self.continues is None else checkpoint.read_state(self._checkpoints_before() / LAST).step

    def _checkpoints_before(self) -> Path:
        assert self.continues is not None, "there is a previous stage"
        return self.workspace.directory / "checkpoints" / self.continues

    def _check_preflight(self, records: Records, machine: hardware.Hardware, steps: int, group: Group) -> Preflight:
        """Refuse `steps` steps that take too long, or whose checkpoints take more than the disk has."""
        settings = self.settings
        presets = self.workspace.directory / "presets"
        preflight = Preflight(settings.stage, settings.model, settings.training, settings.runtime.max_hours, presets)
        if group.is_rank_zero:
            preflight.check_disk(records.store.directory, records.store.keep)
            preflight.check_bound(steps, machine, group.size)
        return preflight

    def _loop(self, trainer: Trainer, preflight: Preflight, run: StageRun | None) -> None:
        """Train to the end; rank 0 announces how long it takes, and writes a report on a step that fails."""
        settings, group = self.settings, trainer.group

        def on_pace(seconds: float) -> None:
            if run is not None:
                steps = settings.steps - trainer.done
                preflight.check_pace(steps, seconds)
                trainer.records.log(announce.pace(steps, seconds), trainer.step)

        if run is not None:
            _failure_report(run).unlink(missing_ok=True)  # of an earlier attempt
        progress = ProgressBar(settings.stage, settings.steps, trainer.done, is_shown=run is not None)
        with closing(trainer.store), closing(progress), StopSignal(second_kills=group.size == 1) as stop:
            try:
                trainer.run(stop, progress, on_pace)
            except NonFinite as error:
                if run is not None:
                    path, data = _failure_report(run), trainer.data
                    tokens = token_directory(self.workspace.directory, settings.stage)
                    failure.write(path, error.values, data.batches, tokens, data.tokenizer)
                    run.artifacts["failure.json"] = path
                raise
        if run is not None:
            # the last point of a curve says little about the speed of the whole run
            median = report.speed_metrics(trainer.journal.records())["tokens_per_second"]
            trainer.journal.append("result", trainer.step, **{"speed/median_tokens_per_second": median})

    def _announce(self, records: Records, machine: hardware.Hardware, first_step: int, group: Group) -> None:
        model, training = self.settings.model, self.settings.training
        plan = announce.training_plan(
            self.settings.steps,
            first_step + self.settings.steps,
            training.tokens_per_step,
            flops_per_token(model, training.sequence_length),
            parameter_count(model),
            group.size,
        )
        computer = announce.machine(machine.name, machine.device.type, machine.precision.value, machine.compile)
        records.log(f"{plan}; {computer}", first_step)
        manifest = read_manifest(token_directory(self.workspace.directory, self.settings.stage))
        steps_per_epoch = manifest[TRAIN]["tokens"] / training.tokens_per_step
        epochs = self.settings.steps / steps_per_epoch
        records.log(announce.epochs(self.settings.steps, epochs), first_step)
        if epochs > announce.MANY_EPOCHS:
            records.log(announce.many_epochs(self.settings.stage, steps_per_epoch), first_step)

    def _record_hardware(self, records: Records, assembly: Assembly, step: int) -> None:
        """Journal the hardware that this start of the stage runs on, from `step` on."""
        model, machine, execution = self.settings.model, assembly.hardware, assembly.model.execution
        kernel = "masked"  # torch does not say which kernel it chooses with a mask
        if execution.document_end is None:
            heads = (model.num_attention_heads, model.num_key_value_heads)
            kernel = machine.attention_kernel(*heads, model.head_dim, self.settings.training.sequence_length)
        records.journal.append(
            HARDWARE,
            step,
            processes=assembly.group.size,
            device=machine.device.type,
            device_name=machine.name,
            precision=machine.precision.value,
            compiled=execution.compiled or execution.kernels is not None,
            micro_batch_size=assembly.micro_batch,
            attention_kernel=kernel,
            torch=torch.__version__,
        )

    def _inputs(self, run: StageRun) -> RunInputs:
        settings, directory = self.settings, self.workspace.directory
        sections = {
            "seed": settings.seed,
            "model": settings.model,
            settings.stage: settings.training,
            "evaluation": settings.evaluation,
            "runtime": settings.runtime,
        }
        uses = [(settings.stage, TRAIN, "training"), (settings.stage, VALIDATION, "validation")]
        uses += [(self.continues, VALIDATION, "validation")] if self.continues else []
        datasets = [
            Dataset(
                f"{stage}/{side}",
                run.state.inputs[f"data/tokens/{stage}"] or "",
                context,
                f"data/tokens/{stage}/{side}.bin",
                read_manifest(token_directory(directory, stage))[side],
            )
            for stage, side, context in uses
        ]
        parent = directory / "reports" / self.continues / "run.json" if self.continues else None
        return RunInputs(sections, datasets, parent)


def _failure_report(run: StageRun) -> Path:
    """The report on a step with a non-finite loss or gradient."""
    return run.reports / "failure.json"
