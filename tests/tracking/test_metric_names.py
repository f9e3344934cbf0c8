"""The numbers of the journal under MLflow's names."""

from typing import TYPE_CHECKING

from smollm.state.journal import Kind, Record
from smollm.tracking.metric_names import metrics

if TYPE_CHECKING:
    pass


def test_a_number_that_is_not_finite_is_not_sent() -> None:
    values = {"train_loss": 2.0, "gradient_norm": float("inf"), "learning_rate": float("nan")}
    record = Record(Kind.STEP, 1, 0.0, values)
    assert list(metrics(record)) == [("train/loss", 2.0)]


def test_the_steps_that_fp16_skips_are_counted() -> None:
    record = Record(Kind.SKIP, 7, 0.0, {"loss_scale": 65536.0, "total": 3})
    assert list(metrics(record)) == [("train/skipped_steps", 3.0)]
