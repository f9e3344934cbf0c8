"""MLflow's names for the numbers in a stage's journal."""

import math
from collections.abc import Iterator

from smollm.state.journal import EVENT, Record

METRICS = {
    ("step", "train_loss"): "train/loss",
    ("step", "gradient_norm"): "train/gradient_norm",
    ("step", "learning_rate"): "train/learning_rate",
    ("skip", "total"): "train/skipped_steps",
    ("validation", "loss"): "validation/loss",
    ("validation", "bits_per_byte"): "validation/bits_per_byte",
    ("validation", "best_bits_per_byte"): "validation/best_bits_per_byte",
    ("validation", "best_step"): "validation/best_step",
    ("validation", "pretrain_bits_per_byte"): "validation/pretrain_bits_per_byte",
    ("speed", "tokens_per_second"): "speed/tokens_per_second",
    ("speed", "step_ms"): "speed/step_ms",
    ("speed", "mfu"): "speed/mfu",
    ("speed", "goodput"): "speed/goodput",
    ("speed", "peak_memory_gib"): "memory/peak_gib",
    ("ranks", "slowest_rank"): "ranks/slowest_rank",
    ("ranks", "slowest_tokens_per_second"): "ranks/slowest_tokens_per_second",
    ("ranks", "fastest_tokens_per_second"): "ranks/fastest_tokens_per_second",
    ("ranks", "least_memory_gib"): "ranks/least_memory_gib",
    ("ranks", "most_memory_gib"): "ranks/most_memory_gib",
}
"""By kind of record and name of the value; a `result` brings names of its own."""


def metrics(record: Record) -> Iterator[tuple[str, float]]:
    """MLflow's metrics in a record of the journal."""
    if record.kind == "result":
        yield from record.values.items()
    elif record.kind != EVENT:
        for name, value in record.values.items():
            metric = METRICS.get((record.kind, name))
            # MLflow stores infinity as the largest number, which ruins the axis of a chart
            if metric is not None and value is not None and math.isfinite(value):
                yield metric, float(value)
