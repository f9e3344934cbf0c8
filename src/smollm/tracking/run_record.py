"""What MLflow receives of a run besides its journal, at the start and at the end."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Dataset:
    """A text that a run trains on or is validated on."""

    name: str
    digest: str
    context: str
    """training or validation."""
    path: str
    profile: dict[str, Any]
    """Counts: documents, bytes, tokens."""


@dataclass(frozen=True)
class RunDescription:
    """What is known of a run when it starts."""

    delivery_id: str
    """Identifies the run before MLflow has given it an id."""
    experiment: str
    run_name: str
    started: float
    """Seconds since the epoch."""
    user: str
    params: dict[str, str]
    tags: dict[str, str]
    datasets: list[Dataset] = field(default_factory=list)
    parent_run_id: str | None = None
    parent_delivery_id: str | None = None
    """Of a parent that had no id yet."""


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that the stage keeps."""

    name: str
    """The same for the same kind of checkpoint in every run."""
    step: int
    validated: float
    """When its validation was measured, in seconds since the epoch."""
    metrics: dict[str, float]
    """Its validation, by MLflow's names."""
    params: dict[str, str]
    """Where DVC has it, and the text that it was trained on."""
    is_exported: bool
    """Whether models/<stage> holds its weights."""


@dataclass(frozen=True)
class ModelVersion:
    """A model version for MLflow's registry: it points at what DVC holds."""

    model: str
    """Name of the registered model."""
    description: str
    """Markdown."""
    tags: dict[str, str]
    source: str
    """Artifact of the run that the version points at."""


@dataclass(frozen=True)
class RunEnd:
    """How a run ended."""

    status: str
    """FINISHED, FAILED or KILLED."""
    ended: float
    """Seconds since the epoch."""
    tags: dict[str, str] = field(default_factory=dict)
    version: ModelVersion | None = None
    checkpoints: list[KeptCheckpoint] = field(default_factory=list)
