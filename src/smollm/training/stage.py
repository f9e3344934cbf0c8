"""A training stage, `pretrain` or `finetune`, from params to published outputs."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from smollm.config.tracking import TrackingConfig
from smollm.device.group import Group
from smollm.device.hardware import Hardware, choose
from smollm.device.seeding import seed_everything
from smollm.errors import NonFinite
from smollm.operate import launch
from smollm.operate.preflight import Preflight, check_vocabulary
from smollm.stage import report
from smollm.stage.run import StageRun, run_stage
from smollm.state.journal import Kind
from smollm.state.tokens import TRAIN, VALIDATION, read_manifest, token_directory
from smollm.state.workspace import Workspace
from smollm.tracking import announce
from smollm.tracking.console import ProgressBar
from smollm.tracking.datasets import token_dataset
from smollm.tracking.observer import RunInputs
from smollm.training import checkpoint, failure
from smollm.training.agreement import check_group, check_hardware, check_machines
from smollm.training.assembly import assemble, hardware_values
from smollm.training.checkpoint import LAST, Checkpoint
from smollm.training.checkpoint_store import CheckpointStore
from smollm.training.data import TrainingData
from smollm.training.plan import plan_lines
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
        restarts = launch.count_restarts(group)

        def work(run: StageRun) -> None:
            group.broadcast(True)
            if restarts:
                run.log(announce.processes_restarted(restarts, runtime.max_restarts))
            with group.reporting_failure():
                self._train(group, Records.of_rank_zero(run.state, runtime.keep_checkpoints, run.log), run)

        if group.is_rank_zero:
            publish = Publisher(settings, self.tracking, is_final=self.continues is not None)
            run_stage(settings.stage, self.workspace, self.tracking, self._inputs, work, publish)
            group.broadcast(False)
        else:
            while group.broadcast(True):
                self._train(group, Records.of_other_rank())

    def _train(self, group: Group, records: Records, run: StageRun | None = None) -> None:
        """Train as one process of `group`, from the first check to the last step; `run` is rank 0's."""
        settings, directory = self.settings, self.workspace.directory
        hardware = self._choose_hardware(group)
        first_step = group.broadcast(self._steps_before() if group.is_rank_zero else 0)

        def log(line: str) -> None:
            records.log(line, first_step)

        for line in plan_lines(settings, directory, self.continues, first_step, hardware, group.size):
            log(line)

        preflight = Preflight(
            settings.stage, settings.model, settings.training, settings.runtime.max_hours, directory / "presets"
        )
        if group.is_rank_zero:
            preflight.check_disk(records.store.directory, records.store.keep)
            done = (records.store.newest_step() or first_step) - first_step
            preflight.check_bound(settings.steps - done, hardware, group.size)

        damages: list[str] = []
        with ThreadPoolExecutor(1, "checkpoint") as thread:  # verifying it takes as long as building the model
            reading = thread.submit(self._initial_checkpoint, group, records.store, damages.append)
            data = TrainingData.open(directory, settings, self.continues)
            assembly = assemble(settings, data, hardware, group, log)
            trainer = Trainer(settings, data, assembly, records, first_step)
        for line in damages:
            log(line)
        initial = reading.result()
        start_step = initial.state.step if initial and initial.state.stage == settings.stage else first_step
        values = hardware_values(assembly, settings.training.sequence_length)
        records.journal.append(Kind.HARDWARE, start_step, **values)
        self._restore(trainer, initial)
        del initial, reading  # as large as the model and its moments
        self._loop(trainer, preflight, run)

    def _choose_hardware(self, group: Group) -> Hardware:
        """Check that the processes of `group` can train this stage together, seed the RNGs, and choose the hardware."""
        settings = self.settings
        check_group(settings, group)
        check_machines(settings, self.workspace, group)
        manifest = read_manifest(token_directory(self.workspace.directory, settings.stage))
        check_vocabulary(manifest["vocab_size"], settings.model)
        seed_everything(settings.seed)
        hardware = choose(settings.runtime, settings.steps)
        check_hardware(settings, hardware, group)
        return hardware

    def _steps_before(self) -> int:
        """Where this stage's steps count from: the last step of the previous stage, even if `start` is its best."""
        return 0 if self.continues is None else checkpoint.read_state(self._checkpoints_before() / LAST).step

    def _checkpoints_before(self) -> Path:
        assert self.continues is not None, "there is a previous stage"
        return self.workspace.directory / "checkpoints" / self.continues

    def _initial_checkpoint(
        self, group: Group, store: CheckpointStore, warn: Callable[[str], None]
    ) -> Checkpoint | None:
        """For rank 0: the newest checkpoint of this stage, else the previous stage's that it starts from."""
        if not group.is_rank_zero:
            return None
        newest = store.newest(warn)
        if newest is not None or self.continues is None:
            return newest
        return checkpoint.load(self._checkpoints_before() / self.settings.training.start.value)

    def _restore(self, trainer: Trainer, initial: Checkpoint | None) -> None:
        """Give every rank the state of rank 0's `initial`, if it has one."""
        state = checkpoint.broadcast(trainer.group, initial)
        if state is not None:
            trainer.restore(state)
        if initial is None:
            return
        line = announce.started_from(initial.state.stage, initial.state.step)
        if initial.state.stage == self.settings.stage:
            line = announce.resumed(initial.state.step)
        trainer.records.log(line, trainer.step)

    def _loop(self, trainer: Trainer, preflight: Preflight, run: StageRun | None) -> None:
        """Train to the end; rank 0 announces how long it takes."""
        settings, group = self.settings, trainer.group

        def on_pace(seconds: float) -> None:
            if run is not None:
                steps = settings.steps - trainer.done
                preflight.check_pace(steps, seconds)
                trainer.records.log(announce.pace(steps, seconds), trainer.step)

        progress = ProgressBar(settings.stage, settings.steps, trainer.done, is_shown=run is not None)
        request = None if run is None else run.stop_request
        stopping, reporting = StopSignal(group.size == 1, request), self._reporting_failure(run, trainer.data)
        with closing(trainer.store), closing(progress), stopping as stop, reporting:
            trainer.run(stop, progress, on_pace)
        if run is not None:
            # the last point of a curve says little about the speed of the whole run
            median = report.speed_metrics(trainer.journal.records())["tokens_per_second"]
            trainer.journal.append(Kind.RESULT, trainer.step, **{"speed/median_tokens_per_second": median})

    @contextmanager
    def _reporting_failure(self, run: StageRun | None, data: TrainingData) -> Iterator[None]:
        """Have rank 0 write a report on a step with a non-finite loss or gradient."""
        if run is None:
            yield
            return
        path = run.reports / "failure.json"
        path.unlink(missing_ok=True)  # of an earlier attempt
        try:
            yield
        except NonFinite as error:
            run.artifacts[path.name] = path
            failure.write(path, error.values, data.batches, self.workspace.directory, data.tokenizer)
            raise

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
        if self.continues:
            uses += [(self.continues, TRAIN, "training")] if settings.training.replay_fraction else []
            uses += [(self.continues, VALIDATION, "validation")]
        datasets = [token_dataset(run.state, *use) for use in uses]
        parent = directory / "reports" / self.continues / "run.json" if self.continues else None
        return RunInputs(sections, datasets, parent)
