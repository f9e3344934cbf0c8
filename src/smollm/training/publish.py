"""The outputs of a finished training stage, written from its live state."""

from dataclasses import dataclass
from typing import Any

from smollm.config.tracking import TrackingConfig
from smollm.config.training import Export, Start
from smollm.errors import CheckpointError
from smollm.model import export
from smollm.model.throughput import parameter_count
from smollm.stage import report
from smollm.stage.run import StageRun
from smollm.state.files import replace_directory
from smollm.state.journal import Kind, Record
from smollm.state.tokens import open_tokenizer, read_manifest, token_directory, tokenizer_path
from smollm.tracking import announce, summary
from smollm.tracking.console import say
from smollm.training.checkpoint import BEST, LAST, Checkpoint, load
from smollm.training.checkpoint_store import CheckpointStore
from smollm.training.settings import Settings

_ARTIFACTS = ("metrics.json", "training_log.txt", "loss.svg", "losses.tsv", "validation.tsv", "speed.tsv")
"""Reports that MLflow gets a copy of."""


@dataclass(frozen=True)
class Publisher:
    """Writes a stage's checkpoint, model and reports where dvc.yaml declares them."""

    settings: Settings
    tracking: TrackingConfig
    is_final: bool
    """Whether this is the last stage, whose model is registered in MLflow."""

    def __call__(self, run: StageRun) -> None:
        """Publish the result of `run`, whose work is complete.

        Raises:
            CheckpointError: its last checkpoint is damaged; the next start continues from the one before.
        """
        store = CheckpointStore(run.state.directory / "checkpoints", 1, run.state.fingerprint)
        last = self._last(run, store)
        best = _best(last, store)
        exported = best if self.settings.training.export is Export.BEST else last
        for name, checkpoint in ((LAST, last), (BEST, best)):
            target = run.workspace.directory / "checkpoints" / self.settings.stage / name
            replace_directory(store.directory_of(checkpoint.state.step), target)
        manifest = read_manifest(token_directory(run.workspace.directory, self.settings.stage))
        self._export_model(run, exported, int(manifest["end_of_text_id"]))
        metrics = self._metrics(run, best.state.step, exported.state.step, str(manifest["documents_sha256"])[:16])
        self._compare_with_start(run, metrics)
        self._write_reports(run, metrics)

    def _export_model(self, run: StageRun, exported: Checkpoint, end_of_text_id: int) -> None:
        """Write models/<stage>, and have MLflow register and store it as the settings say."""
        directory = run.workspace.directory
        model = directory / "models" / self.settings.stage
        tokenizer = open_tokenizer(tokenizer_path(directory))
        export.write_model(model, self.settings.model, exported.exported, tokenizer, end_of_text_id)
        if self.is_final:
            run.registered_model = self.tracking.registered_model
        if self.tracking.store_weights:
            run.artifacts |= {f"model/{file.name}": file for file in model.iterdir()}

    def _metrics(self, run: StageRun, best_step: int, exported_step: int, corpus: str) -> dict[str, Any]:
        """What metrics.json holds."""
        metrics = report.training_metrics(run.state.journal.records(), best_step, exported_step)
        return metrics | {
            "parameters": parameter_count(self.settings.model),
            "tokens": (metrics["step"] - metrics["initial_step"]) * self.settings.training.tokens_per_step,
            "corpus": corpus,
        }

    def _write_reports(self, run: StageRun, metrics: dict[str, Any]) -> None:
        """Write reports/<stage>, note what MLflow gets of it, and print the summary."""
        stage, records = self.settings.stage, run.state.journal.records()
        report.write_training(run.reports, f"{stage}: loss", records, metrics)
        run.facts |= report.speed_metrics(records)
        run.facts["device"] = next(r.values["device_name"] for r in reversed(records) if r.kind == Kind.HARDWARE)
        run.artifacts |= {name: run.reports / name for name in _ARTIFACTS}
        say(summary.training(stage, metrics, run.facts, _sample(records, metrics["exported_step"])))

    def _last(self, run: StageRun, store: CheckpointStore) -> Checkpoint:
        """The checkpoint of the stage's last step."""
        newest = store.newest(run.log)
        last = next(record.step for record in run.state.journal.records() if record.kind == Kind.END)
        if newest is None or newest.state.step != last:
            run.state.mark_incomplete()
            raise CheckpointError(
                f"{self.settings.stage}: the last checkpoint is damaged; `dvc repro` continues from the one before"
            )
        return newest

    def _compare_with_start(self, run: StageRun, metrics: dict[str, Any]) -> None:
        """Log a line if a stage that continues another did not improve on what it started from."""
        start, exported = metrics["initial_bits_per_byte"], metrics["exported_bits_per_byte"]
        if self.settings.training.start is Start.INITIAL:
            return
        step = int(metrics["step"])
        if exported > start:
            run.log(announce.worse_than_start(self.settings.stage, start, exported), step)
        elif metrics["exported_step"] == metrics["initial_step"]:
            run.log(announce.start_is_best(self.settings.stage, start, metrics["bits_per_byte"]), step)


def _best(last: Checkpoint, store: CheckpointStore) -> Checkpoint:
    """The checkpoint with the best validation; the last one if the initial weights, which are not kept, were best."""
    best = last.state.best
    return last if best is None or best.step in (0, last.state.step) else load(store.directory_of(best.step))


def _sample(records: list[Record], step: int) -> str | None:
    """The first of the newest samples up to `step`, with its prompt."""
    samples = [r.values for r in records if r.kind == Kind.SAMPLE and r.step <= step]
    return samples[-1]["prompts"][0] + samples[-1]["texts"][0] if samples else None
