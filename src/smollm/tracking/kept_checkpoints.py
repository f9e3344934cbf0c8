"""The checkpoints that a finished training stage keeps, for MLflow: step, validation and place of each."""

from collections.abc import Iterator
from typing import Any

from smollm.state.journal import Kind, Record
from smollm.tracking.metric_names import metrics as named_metrics
from smollm.tracking.run_record import KeptCheckpoint


def kept_checkpoints(
    stage: str, records: list[Record], metrics: dict[str, Any], tags: dict[str, str]
) -> Iterator[KeptCheckpoint]:
    """The last checkpoint of a stage, and the best one if it is another.

    Args:
        stage: pretrain or finetune.
        records: its journal.
        metrics: its metrics.json.
        tags: of its run, with the digests of its outputs and the command that restores them.
    """
    steps = {"last": metrics["step"], "best": metrics["best_step"]}
    validations = {record.step: record for record in records if record.kind == Kind.VALIDATION}
    for kind, step in steps.items():
        if step not in validations or (kind == "best" and step == steps["last"]):
            continue
        path = f"checkpoints/{stage}"
        yield KeptCheckpoint(
            name=f"{stage}-{kind}",
            step=step,
            validated=validations[step].time,
            metrics=dict(named_metrics(validations[step])),
            params={
                "path": f"{path}/{kind}",
                "dvc_md5": tags[f"dvc.out.{path}"],
                "restore": tags["restore"],
                "corpus": metrics["corpus"],
            },
            is_exported=step == metrics["exported_step"],
        )
