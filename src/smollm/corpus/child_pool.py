"""Child processes that work on a stream of items, one process per core, and give the results in the items' order."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from smollm.corpus.child_process import ChildProcess

T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P", bound=ChildProcess)

MOST_PROCESSES = 16
"""Each holds about 35 MB."""


def in_order(
    items: Iterable[T], work: Callable[[P, T], R], start: Callable[[], P], max_processes: int = MOST_PROCESSES
) -> Generator[tuple[T, R], None, None]:
    """Yield each item with the result of its work, in the order of the items.

    Args:
        items: read ahead by about twice as many as there are processes.
        work: has a process do the work of an item; called in threads.
        start: starts a process; called when one is needed. All processes end with the generator.
        max_processes: the largest number of processes; there is at most one per core.

    Raises:
        CorpusError: what `work` raises, for example because a process ended.
    """
    process_count = min(core_count(), max_processes)
    free: queue.SimpleQueue[P] = queue.SimpleQueue()
    processes: list[P] = []

    def do(item: T) -> R:
        try:
            process = free.get_nowait()
        except queue.Empty:
            process = start()
            processes.append(process)
        result = work(process, item)
        free.put(process)
        return result

    threads = ThreadPoolExecutor(process_count)
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            waiting.append((item, threads.submit(do, item)))
            if len(waiting) > 2 * process_count:
                oldest, result = waiting.popleft()
                yield oldest, result.result()
        for oldest, result in waiting:
            yield oldest, result.result()
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.close()


def batches(items: Iterable[T], size_of: Callable[[T], int], full_size: int) -> Iterator[list[T]]:
    """Group items until a group has at least `full_size`."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= full_size:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_ahead(items: Iterator[T], count: int = 4) -> Iterator[T]:
    """The same items; a thread fetches up to `count` of them before they are asked for."""
    fetched: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    is_over = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> None:
        while not is_over.is_set():
            try:
                fetched.put((item, error), timeout=0.1)
                break
            except queue.Full:
                pass

    def fetch() -> None:
        try:
            for item in items:
                put(item)
                if is_over.is_set():
                    return
            put(None)
        except BaseException as error:
            put(None, error)

    threading.Thread(target=fetch, name="reader", daemon=True).start()
    try:
        while True:
            item, error = fetched.get()
            if error:
                raise error
            if item is None:
                return
            yield item
    finally:
        is_over.set()
