"""A run to send to MLflow, and what MLflow has of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm.config.tracking import TrackingConfig
from smollm.state.journal import Journal, Kind
from smollm.tracking.run_record import Dataset, RunDescription

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DESCRIPTION = RunDescription(
    delivery_id="abc-1700000000000",
    experiment="smollm",
    run_name="pretrain-abc",
    started=1_700_000_000.0,
    user="someone",
    params={f"section.name{n}": str(n) for n in range(150)},
    tags={"stage": "pretrain"},
    datasets=[Dataset("pretrain/train", "0" * 32 + ".dir", "training", "data/tokens/pretrain", {"tokens": 3})],
)

SETTINGS = TrackingConfig(
    experiment="smollm",
    send_every_seconds=0.01,
    system_metrics_every_seconds=10.0,
    finish_seconds=60.0,
    registered_model=None,
    store_weights=False,
)


def record_steps(directory: Path, first: int, last: int) -> None:
    """Add steps `first` to `last` to the journal of a live state, a sample and the hardware."""
    journal = Journal(directory / "journal.jsonl")
    for step in range(first, last + 1):
        journal.append(Kind.STEP, step, train_loss=10.0 / step, gradient_norm=1.0, learning_rate=0.1)
        journal.append(Kind.SPEED, step, tokens_per_second=5.0, step_ms=1.0, mfu=None, goodput=0.5, peak_memory_gib=1.0)
    journal.append(Kind.SAMPLE, last, prompts=["a", "b"], texts=["\tone", "two\n"])
    journal.append(Kind.HARDWARE, 0, device="cpu")
    journal.close()


def only_run(client: "MlflowClient") -> "Run":
    """The one run that the store has."""
    (run,) = client.search_runs([client.get_experiment_by_name("smollm").experiment_id])
    return run


def points(client: "MlflowClient", run: "Run") -> list[tuple[int, float, int]]:
    """Step, value and time of each point of the training loss."""
    return [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run.info.run_id, "train/loss")]


class DeadClient:
    """Every call fails."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("nobody there")
