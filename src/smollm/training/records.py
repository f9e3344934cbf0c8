"""Where a trainer writes to: on rank 0 the live state, on other ranks nowhere."""

from collections.abc import Callable
from dataclasses import dataclass

from smollm.state.journal import Journal, Kind, Record
from smollm.state.live_state import LiveState
from smollm.training.checkpoint_store import CheckpointStore, NoCheckpointStore


@dataclass(frozen=True)
class Records:
    """Journal, checkpoint store and log of a training stage."""

    journal: Journal
    store: CheckpointStore
    log: Callable[[str, int], None]
    """Prints a line, and adds it to the training log at a step."""

    @classmethod
    def of_rank_zero(cls, state: LiveState, keep: int, log: Callable[[str, int], None]) -> "Records":
        """Journal and checkpoints in the live state; the newest `keep` checkpoints stay."""
        return cls(state.journal, CheckpointStore(state.directory / "checkpoints", keep, state.fingerprint), log)

    @classmethod
    def of_other_rank(cls) -> "Records":
        """A journal and a store that keep nothing: rank 0 writes the same values."""
        return cls(NoJournal(), NoCheckpointStore(), lambda *_: None)


class NoJournal(Journal):
    """A journal that keeps nothing."""

    def __init__(self) -> None:
        pass

    def append(self, kind: Kind, step: int, **values: object) -> None:
        pass

    def records(self) -> list[Record]:
        return []

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
