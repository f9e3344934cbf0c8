"""Runs that MLflow lacks after their stage has ended: ``mlruns/outbox/<delivery id>/``, sent when it answers again.

``python -m smollm.tracking.outbox`` (`make sync`) sends them now.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smollm.state.files import link_or_copy, read_json, write_json
from smollm.tracking.deadline import Deadline, within
from smollm.tracking.delivery import Delivery
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.mlruns_lock import try_lock
from smollm.tracking.run_record import RunEnd
from smollm.tracking.upload import Dropped, upload

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MOMENT_SECONDS = 5.0
"""How long a stage waits at its start or end for another process that is sending what it must replace."""

_RUN_SECONDS = 600.0
"""How long `send_waiting` may take for each run, weights to upload included."""


def add(delivery: Delivery) -> None:
    """Copy a delivery to the outbox, from where it is sent later.

    Raises:
        OSError: the disk is full, or another process is sending an older copy, which then stays.
    """
    if not delivery.has_begun:  # killed before it had a description
        return
    target = _folder(delivery.store) / delivery.delivery_id
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        _copy(delivery, draft)
        with _held(target, Deadline(_MOMENT_SECONDS)):
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    delivery.update(in_outbox=True)


def _copy(delivery: Delivery, target: Path) -> None:
    directory = delivery.directory
    for name in ("journal.jsonl", "description.json", "status.json"):
        if (directory / name).exists():
            shutil.copyfile(directory / name, target / name)
    write_json(target / "delivery.json", dict(delivery.state))  # a thread left behind may still write to it
    for file in (directory / "artifacts").rglob("*"):
        if file.is_file():
            link_or_copy(file, target / file.relative_to(directory))


def withdraw(delivery: Delivery, deadline: Deadline) -> None:
    """Remove the outbox's copy of a run that continues: its own journal has all of it.

    Raises:
        OSError: it cannot be removed, or another process is still sending it at the `deadline`.
    """
    target = _folder(delivery.store) / delivery.delivery_id
    with _held(target, deadline) as is_there:
        if is_there:
            shutil.rmtree(target)


def abandon(directory: Path, store: MlflowStore, ended: float) -> None:
    """Put a run whose live state is about to be removed into the outbox, closed as KILLED unless it has ended.

    Raises:
        OSError: as for `add`.
    """
    delivery = Delivery(directory, store)
    delivery.state |= read_json(directory / "delivery.json")  # the run's own store, which may be another
    if not delivery.is_done and not delivery.is_in_outbox:
        if not (directory / "status.json").exists():
            delivery.end(RunEnd("KILLED", ended), {})
        add(delivery)


def send(
    client: "MlflowClient", store: MlflowStore, warn: Callable[[str], None], deadline: Deadline | None = None
) -> int:
    """Send every delivery of the outbox that is for `store`; return how many remain."""
    return sum(not _is_sent(directory, client, store, warn, deadline or Deadline()) for directory in waiting(store))


def _is_sent(
    directory: Path, client: "MlflowClient", store: MlflowStore, warn: Callable[[str], None], deadline: Deadline
) -> bool:
    """Whether a delivery is sent, by this process or another; where it is not, `warn` says why."""
    name = directory.name
    try:
        with _held(directory, deadline) as is_there:
            if not is_there:
                return True
            target = read_json(directory / "delivery.json").get("store_shown")
            if target != store.shown:
                warn(f"outbox: {name} is for {target}; set MLFLOW_TRACKING_URI to send it")
                return False
            try:
                upload(Delivery(directory, store, deadline), client)
            except Dropped as error:
                warn(f"outbox: {name} dropped: {error}")
            shutil.rmtree(directory)
    except Exception as error:  # whatever a store or the way to it raises
        warn(f"outbox: {name} not sent, {store.reason(error)}")
        return False
    return True


def waiting(store: MlflowStore) -> list[Path]:
    """Folders of the deliveries in the outbox, the oldest run first: a parent comes before its children.

    The name of a delivery's folder ends in the time of its run; other folders are ignored.
    """
    deliveries = [file.parent for file in _folder(store).glob("[!.]*/description.json")]
    times = {path: path.name.rpartition("-")[2] for path in deliveries}
    return sorted((path for path in deliveries if times[path].isdecimal()), key=lambda path: int(times[path]))


@contextmanager
def _held(directory: Path, deadline: Deadline) -> Iterator[bool]:
    """Lock a delivery in the outbox; yields whether it exists.

    Raises:
        TimeoutError: another process still holds it at the `deadline`.
    """
    while True:
        if deadline.is_over:
            raise TimeoutError(f"another process is sending {directory.name}")
        try:
            file = (directory / "description.json").open("r+b")  # makes none
        except FileNotFoundError:
            yield False
            return
        with file:
            if not try_lock(file):
                time.sleep(0.1)
                continue
            if os.fstat(file.fileno()).st_nlink:  # else its holder has sent or replaced it
                yield True
                return


def _folder(store: MlflowStore) -> Path:
    return store.root / "outbox"


def send_waiting(store: MlflowStore) -> bool:
    """Send what waits for `store`, print how much, and return whether nothing is left."""
    count = len(waiting(store))
    seconds = _RUN_SECONDS * (1 + count)

    def send_all() -> int:
        return send(store.client(), store, lambda line: print(line, file=sys.stderr), Deadline(seconds))

    try:
        left = within(seconds, send_all) if count else 0
    except Exception as error:  # whatever a store or the way to it raises
        print(store.outage(error), file=sys.stderr)
        return False
    print(f"{count - left} of {count} waiting runs sent to {store.shown}" if count else "no waiting runs")
    return not left


def main() -> None:
    """Send what waits in the outbox of the repository in the working directory."""
    sys.exit(0 if send_waiting(MlflowStore.of(Path.cwd())) else 1)


if __name__ == "__main__":
    main()
