"""Section `tracking`: what is sent to MLflow, and when. No stage depends on it."""

from dataclasses import dataclass
from typing import Annotated

from smollm.config.fields import NOT_EMPTY, Rule, above


@dataclass(frozen=True)
class TrackingConfig:
    experiment: Annotated[str, NOT_EMPTY]
    """MLflow experiment of all three stages."""
    send_every_seconds: Annotated[float, above(0)]
    """How often new points go to MLflow."""
    system_metrics_every_seconds: Annotated[float, above(0)]
    """How often CPU, memory, disk, network and GPU use are measured."""
    finish_seconds: Annotated[float, above(0)]
    """How long the end of a stage waits for MLflow; what is left then is sent later."""
    registered_model: Annotated[
        str | None,
        NOT_EMPTY,
        Rule(lambda name: not set(name) & set("/:'\"`"), "must hold no slash, colon or quote", "use e.g. smollm-135m"),
    ]
    """Name in MLflow's registry, which gets a version for each finished finetune; null: none."""
    store_weights: bool
    """Whether MLflow gets a copy of the model's folder; DVC has it in any case."""
