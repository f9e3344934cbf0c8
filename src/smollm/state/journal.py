"""The append-only record of a running stage, from which its reports and its MLflow run are made.

One JSON object a line. A training step is recorded once: when a resumed stage computes a step
again that was recorded before the kill, the first record stands.
"""

import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from smollm.errors import StateError
from smollm.state.files import disk_errors, sync


class Kind(StrEnum):
    """Kinds of records."""

    STEP = "step"
    """A training step: loss, gradient norm and learning rate."""
    SKIP = "skip"
    """A training step that was not taken, because its gradient overflowed."""
    SPEED = "speed"
    RANKS = "ranks"
    """How the ranks' speeds and memory differ."""
    VALIDATION = "validation"
    SAMPLE = "sample"
    """Texts that the model wrote."""
    HARDWARE = "hardware"
    """What the stage computes on: one record per start, of which the newest counts."""
    RESULT = "result"
    """Numbers under their MLflow names."""
    END = "end"
    """A training stage's last step, and why it is the last."""
    COMPLETE = "complete"
    """The work is done; only the outputs may be missing after it."""
    EVENT = "event"
    """A line of the training log."""


_REPEATED = (Kind.EVENT, Kind.HARDWARE)
"""Kinds that may have several records per step."""


@dataclass(frozen=True)
class Record:
    kind: str
    """A `Kind`, or the kind of another version of the code."""
    step: int
    time: float
    """Seconds since the epoch."""
    values: dict[str, Any]


def read(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Complete records from byte `offset` on, each with the offset that follows it.

    Raises:
        StateError: a line is damaged.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file, disk_errors(path):
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
                record = Record(values.pop("kind"), values.pop("step"), values.pop("time"), values)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise StateError(
                    f"{path}: the line at byte {offset} is damaged; remove {path.parent} to start the stage over"
                ) from None
            offset += len(line)
            yield record, offset


class Journal:
    """Writes records to `path`, continuing where an earlier process stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[tuple[str, int]] = set()
        end = 0
        for record, after in read(path):
            self._seen.add((record.kind, record.step))
            end = after
        self._file = path.open("ab", buffering=0)
        with disk_errors(path):
            self._file.truncate(end)  # a line torn by a kill
        self._end = end

    def append(self, kind: Kind, step: int, **values: object) -> None:
        """Record `values`, unless `step` already has a record of this kind and may have only one.

        Raises:
            OSError: the disk is full or fails; nothing was recorded.
        """
        if kind not in _REPEATED and (kind, step) in self._seen:
            return
        text = json.dumps({"kind": kind, "step": step, "time": time.time(), **values}, ensure_ascii=False)
        line = text.encode() + b"\n"
        with disk_errors(self.path):
            written = self._file.write(line)
            if written != len(line):
                self._file.truncate(self._end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += written
        self._seen.add((kind, step))

    def event(self, step: int, message: str) -> None:
        """Record a line for the training log."""
        self.append(Kind.EVENT, step, message=message)

    def records(self) -> list[Record]:
        return [record for record, _ in read(self.path)]

    def sync(self) -> None:
        """Flush everything recorded so far to the disk.

        Raises:
            OSError: the disk fails.
        """
        with disk_errors(self.path):
            sync(self._file.fileno())

    def close(self) -> None:
        with disk_errors(self.path):
            self._file.close()
