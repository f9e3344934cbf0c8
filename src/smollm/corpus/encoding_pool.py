"""Encodes a stream of texts in several processes, and gives the ids in the order of the texts."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer

from smollm.corpus.encoding_process import EncodingProcess

T = TypeVar("T")

_MOST_PROCESSES = 16
"""Each holds about 35 MB."""


def encode_in_order(
    batches: Iterator[list[T]], text_of: Callable[[T], str], tokenizer: Tokenizer, dtype: type[np.unsignedinteger]
) -> Generator[tuple[list[T], list[bytes]], None, None]:
    """Yield each batch with the ids of its items' texts, as the bytes of arrays of `dtype`.

    One process a core encodes, started when it is needed. All of them end with the generator.

    Raises:
        CorpusError: the tokenizer refused a text, or a process ended.
    """
    process_count = min(core_count(), _MOST_PROCESSES)
    tokenizer_json = tokenizer.to_str()
    free: queue.SimpleQueue[EncodingProcess] = queue.SimpleQueue()
    processes: list[EncodingProcess] = []

    def encode(texts: list[str]) -> list[bytes]:
        try:
            process = free.get_nowait()
        except queue.Empty:
            process = EncodingProcess(tokenizer_json, np.dtype(dtype).char)
            processes.append(process)
        ids = process.encode(texts)
        free.put(process)
        return ids

    threads = ThreadPoolExecutor(process_count)
    waiting: deque[tuple[list[T], Future[list[bytes]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, threads.submit(encode, [text_of(item) for item in batch])))
            if len(waiting) > 2 * process_count:
                oldest, ids = waiting.popleft()
                yield oldest, ids.result()
        for oldest, ids in waiting:
            yield oldest, ids.result()
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.close()


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_ahead(items: Iterator[T], most: int = 4) -> Iterator[T]:
    """The same items; a thread fetches up to `most` of them before they are asked for."""
    fetched: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(most)
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
