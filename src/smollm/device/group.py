"""The processes that train one model together, and the collectives they use.

Rank 0 alone writes: live state, checkpoints, tracking, outputs. The other ranks compute. A single process is a
group of size 1 and its own rank 0.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

_RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""How long a rank waits for the others to start."""

_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for a rank that is busy, or whose machine is gone."""


@dataclass(frozen=True)
class Group:
    """This process's rank among those that train together, and how it communicates with them."""

    rank: int
    size: int
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_size: int = 1
    store: Store | None = None
    """Key-value store that every process of the group can reach."""

    @classmethod
    def single(cls) -> "Group":
        """A process that trains alone."""
        return cls(0, 1)

    @classmethod
    def join(cls, is_dvc_here: bool, has_gpu: bool) -> "Group":
        """Join the processes that torchrun started with this one.

        Ranks are torchrun's, shifted so that rank 0 is on the machine whose outputs DVC keeps.

        Args:
            is_dvc_here: whether DVC runs on this machine; if it runs on none, ranks are torchrun's.
            has_gpu: whether each process has a GPU of its own: that of its local rank.
        """
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if has_gpu:
            torch.cuda.set_device(local_rank)
        store, rank, size = next(rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
        store.set(f"dvc/{rank}", str(is_dvc_here))
        first = next((other for other in range(size) if store.get(f"dvc/{other}") == b"True"), 0)
        rank = (rank - first) % size
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        distributed.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT, world_size=size, rank=rank, store=store)
        return cls(rank, size, local_rank, local_size, store)

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    def close(self) -> None:
        """Leave the group, once all ranks leave it. CUDA graphs with collectives in them must have been released."""
        if self.size > 1:
            gc.collect()  # NCCL waits forever for a graph with a collective in it
            with suppress(RuntimeError):  # another rank is gone already
                self.all_gather(None)
                distributed.destroy_process_group()

    def announce(self, report: str, seconds: float) -> str:
        """Tell all ranks why the group ends, and wait at most `seconds` until each has acknowledged it.

        Returns:
            What was announced first, by this rank or another.
        """
        if self.store is None:
            return report
        with suppress(distributed.DistError):  # the process that serves the store is gone
            report = str(self.store.compare_set("end", "", report), "utf-8")
            deadline = time.monotonic() + seconds
            while self.store.add("end/acknowledged", 0) < self.size and time.monotonic() < deadline:
                time.sleep(0.1)
        return report

    @contextmanager
    def reporting_failure(self) -> Iterator[None]:
        """A context in which the other ranks learn of an error of rank 0 at once; it announces the error only later."""
        try:
            yield
        except Exception:
            if self.store is not None and self.is_rank_zero:
                with suppress(distributed.DistError):  # the process that serves the store is gone
                    self.store.set("rank 0 failed", "")
            raise

    def has_rank_zero_failed(self) -> bool:
        """Whether rank 0 has failed, and will announce why."""
        try:
            return self.store is not None and self.store.check(["rank 0 failed"])
        except distributed.DistError:
            return False

    def announced(self) -> str | None:
        """What a rank announced, or None.

        Raises:
            DistError: the process that serves the store is gone.
        """
        if self.store is None or not self.store.check(["end"]):
            return None
        return str(self.store.get("end"), "utf-8")

    def acknowledge(self) -> None:
        """Tell the announcing rank that this one has passed on why the group ends; called once."""
        if self.store is not None:
            with suppress(distributed.DistError):
                self.store.add("end/acknowledged", 1)

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def broadcast_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's CPU tensors, on every rank; the other ranks pass an empty dict."""
        if self.size == 1:
            return tensors
        shapes = self.broadcast([(name, value.shape, value.dtype) for name, value in tensors.items()])
        received = {}
        for name, shape, dtype in shapes:
            received[name] = tensors[name].contiguous() if self.is_rank_zero else torch.empty(shape, dtype=dtype)
            distributed.broadcast(received[name], 0)
        return received

    def all_gather(self, value: T) -> list[T]:
        """Every rank's `value`, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def all_reduce(self, value: int, reduce: Callable[[list[int]], int]) -> int:
        """`reduce` of every rank's integer; faster than `all_gather`, which pickles."""
        if self.size == 1:
            return reduce([value])
        values = [torch.empty((), dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(values, torch.tensor(value))
        return reduce([int(each) for each in values])

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over all ranks, elementwise and in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def local_slice(self, items: int) -> slice:
        """Which of `items` consecutive items this rank computes: equal parts, of which the last ones may be smaller."""
        each = -(-items // self.size)
        return slice(self.rank * each, (self.rank + 1) * each)

    def all_gather_rows(self, mine: Tensor, items: int) -> Tensor:
        """All `items` rows on every rank; each rank passes those of its `local_slice`."""
        if self.size == 1:
            return mine
        each = -(-items // self.size)
        padded = mine.new_zeros(each, *mine.shape[1:])
        padded[: len(mine)] = mine
        gathered = mine.new_empty(each * self.size, *mine.shape[1:])
        distributed.all_gather(list(gathered.chunk(self.size)), padded)
        return gathered[:items]
