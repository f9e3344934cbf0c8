"""The outputs of a finished training stage, written from its live state."""

from dataclasses import dataclass

from smollm.config.tracking import TrackingConfig
from smollm.errors import CheckpointError
from smollm.model import export
from smollm.model.throughput import parameter_count
from smollm.stage import report
from smollm.stage.run import StageRun
from smollm.state.files import replace_directory
from smollm.state.journal import HARDWARE
from smollm.state.tokens import open_tokenizer, read_manifest
from smollm.tracking import summary
from smollm.tracking.console import say
from smollm.training.checkpoint import Checkpoint
from smollm.training.checkpoint_store import CheckpointStore
from smollm.training.data import token_directory
from smollm.training.settings import Settings

_ARTIFACTS = ("metrics.json", "training_log.txt", "loss.svg", "losses.tsv", "validation.tsv", "speed.tsv")
"""Reports that MLflow gets a copy of."""


@dataclass(frozen=True)
class Publisher:
    """Writes a stage's checkpoint, model and reports where dvc.yaml declares them."""

    settings: Settings
    tracking: TrackingConfig
    is_final: bool
    """Whether no stage continues this one: its model is the one to register."""

    def __call__(self, run: StageRun) -> None:
        """Publish the result of `run`, whose work is complete.

        Raises:
            CheckpointError: its last checkpoint is damaged; the stage is left to go on from the one before.
        """
        directory, stage = run.workspace.directory, self.settings.stage
        store = CheckpointStore(run.state.directory / "checkpoints", 1, run.state.fingerprint)
        weights = self._last(run, store).exported
        manifest = read_manifest(token_directory(directory, stage))
        tokenizer = open_tokenizer(directory / "data/tokenizer/tokenizer.json")
        model = directory / "models" / stage
        replace_directory(store.newest_directory(), directory / "checkpoints" / stage)
        export.write_model(model, self.settings.model, weights, tokenizer, int(manifest["end_of_text_id"]))
        records = run.state.journal.records()
        facts = {
            "parameters": parameter_count(self.settings.model),
            "tokens": self.settings.steps * self.settings.training.tokens_per_step,
            "corpus": str(manifest["documents_sha256"])[:16],
        }
        report.write_training(run.reports, f"{stage}: loss", records, facts)
        run.facts |= report.speed_metrics(records)
        run.facts["device"] = next(r.values["device_name"] for r in reversed(records) if r.kind == HARDWARE)
        run.artifacts |= {name: run.reports / name for name in _ARTIFACTS}
        if self.is_final:
            run.registered_model = self.tracking.registered_model
        if self.tracking.store_weights:
            run.artifacts |= {f"model/{file.name}": file for file in model.iterdir()}
        samples = [r.values["prompts"][0] + r.values["texts"][0] for r in records if r.kind == "sample"]
        say(summary.training(stage, report.training_metrics(records), run.facts, samples[-1] if samples else None))

    def _last(self, run: StageRun, store: CheckpointStore) -> Checkpoint:
        """The checkpoint of the stage's last step."""
        newest = store.newest(run.log)
        last = max(record.step for record in run.state.journal.records() if record.kind == "step")
        if newest is None or newest.state.step != last:
            run.state.mark_incomplete()
            raise CheckpointError(
                f"{self.settings.stage}: the last checkpoint must be intact, got a damaged one; "
                "`dvc repro` goes on from the one before"
            )
        return newest
