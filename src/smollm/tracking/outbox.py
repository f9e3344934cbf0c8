"""Deliveries that outlived their stage: ``mlruns/outbox/<mark>/``, sent when MLflow answers again.

``python -m smollm.tracking.outbox`` (`make sync`) sends them now.
"""

import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from smollm.files import write_json
from smollm.tracking.delivery import Delivery, Ending, read_json
from smollm.tracking.store import Deadline, Store, locked

if TYPE_CHECKING:
    from mlflow import MlflowClient


def put_aside(delivery: Delivery) -> None:
    """Copy a delivery to the outbox, from where it is sent later.

    Raises:
        OSError: there is no room for it; what is there already stays.
    """
    directory = delivery.directory
    if not (directory / "description.json").exists():  # killed before it could say what it was
        return
    target = _folder(delivery.store) / delivery.mark
    draft = target.with_name(f".{target.name}.tmp")
    with _lock(delivery.store):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name in ("journal.jsonl", "description.json", "status.json"):
            if (directory / name).exists():
                shutil.copyfile(directory / name, draft / name)
        write_json(draft / "delivery.json", delivery.state)
        if (directory / "artifacts").exists():
            shutil.copytree(directory / "artifacts", draft / "artifacts")
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    delivery.note_aside()


def withdraw(delivery: Delivery) -> None:
    """Take a run back that goes on, with all that happened before in its own journal."""
    with _lock(delivery.store):
        shutil.rmtree(_folder(delivery.store) / delivery.mark, ignore_errors=True)


def abandon(directory: Path, store: Store, ended: float) -> None:
    """Leave no run behind whose live state is about to go: close it as KILLED, unless it has ended.

    Raises:
        OSError: there is no room for it in the outbox.
    """
    delivery = Delivery(directory, store)
    if not delivery.is_done and not delivery.is_aside:
        if not (directory / "status.json").exists():
            delivery.end(Ending("KILLED", ended), {})
        put_aside(delivery)


def send(client: "MlflowClient", store: Store, warn: Callable[[str], None], deadline: Deadline | None = None) -> int:
    """Send every delivery of the outbox that is meant for `store`; return how many are left there."""
    left = 0
    with _lock(store):
        for directory in waiting(store):
            state = read_json(directory / "delivery.json")
            if state.get("store") != store.key:
                left += 1
                warn(f"outbox: {directory.name} is for {state.get('store_shown')}; set MLFLOW_TRACKING_URI to send it")
                continue
            try:
                Delivery(directory, store, deadline).send(client)
            except Exception as error:  # whatever a store or the way to it raises
                left += 1
                warn(f"outbox: {directory.name} not sent, {store.reason(error)}")
            else:
                shutil.rmtree(directory)
    return left


def waiting(store: Store) -> list[Path]:
    """Folders of the deliveries in the outbox, the oldest run first: a parent comes before its children."""
    return sorted(_folder(store).glob("[!.]*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _folder(store: Store) -> Path:
    return store.root / "outbox"


def _lock(store: Store) -> AbstractContextManager[None]:
    return locked(_folder(store) / ".lock")


def send_waiting(store: Store) -> bool:
    """Send what waits for `store`, saying how much; return whether nothing is left."""
    there = len(waiting(store))
    try:
        left = send(store.client(), store, lambda line: print(line, file=sys.stderr)) if there else 0
    except Exception as error:  # whatever a store or the way to it raises
        print(f"ERROR: MLflow ({store.shown}) must answer, got {store.reason(error)}; try again later", file=sys.stderr)
        return False
    print(f"{there - left} of {there} waiting runs sent to {store.shown}" if there else "no waiting runs")
    return not left


def main() -> None:
    """Send what waits in the outbox of the repository in the working directory."""
    sys.exit(0 if send_waiting(Store.of(Path.cwd())) else 1)


if __name__ == "__main__":
    main()
