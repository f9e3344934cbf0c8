"""MLflow's names for the numbers in a stage's journal."""

import math
from collections.abc import Iterator

from smollm.state.journal import Kind, Record

METRICS: dict[tuple[str, str], str] = {
    (Kind.STEP, "train_loss"): "train/loss",
    (Kind.STEP, "gradient_norm"): "train/gradient_norm",
    (Kind.STEP, "learning_rate"): "train/learning_rate",
    (Kind.SKIP, "total"): "train/skipped_steps",
    (Kind.VALIDATION, "loss"): "validation/loss",
    (Kind.VALIDATION, "bits_per_byte"): "validation/bits_per_byte",
    (Kind.VALIDATION, "best_bits_per_byte"): "validation/best_bits_per_byte",
    (Kind.VALIDATION, "best_step"): "validation/best_step",
    (Kind.VALIDATION, "pretrain_bits_per_byte"): "validation/pretrain_bits_per_byte",
    (Kind.SPEED, "tokens_per_second"): "speed/tokens_per_second",
    (Kind.SPEED, "step_ms"): "speed/step_ms",
    (Kind.SPEED, "mfu"): "speed/mfu",
    (Kind.SPEED, "goodput"): "speed/goodput",
    (Kind.SPEED, "peak_memory_gib"): "memory/peak_gib",
    (Kind.RANKS, "slowest_rank"): "ranks/slowest_rank",
    (Kind.RANKS, "slowest_tokens_per_second"): "ranks/slowest_tokens_per_second",
    (Kind.RANKS, "fastest_tokens_per_second"): "ranks/fastest_tokens_per_second",
    (Kind.RANKS, "least_memory_gib"): "ranks/least_memory_gib",
    (Kind.RANKS, "most_memory_gib"): "ranks/most_memory_gib",
}
"""By kind of record and name of the value; the values of a `result` have MLflow's names already."""


def metrics(record: Record) -> Iterator[tuple[str, float]]:
    """MLflow's metrics in a record of the journal."""
    if record.kind == Kind.RESULT:
        yield from record.values.items()
    elif record.kind != Kind.EVENT:
        for name, value in record.values.items():
            metric = METRICS.get((record.kind, name))
            # MLflow stores infinity as the largest number, which ruins the axis of a chart
            if metric is not None and value is not None and math.isfinite(value):
                yield metric, float(value)
