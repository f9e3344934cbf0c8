"""The processes that train one model together, and what they tell each other.

Each has a rank. One of them, the chief, keeps the books: live state, checkpoints, tracking, outputs. The others
compute, and nothing that they write is kept. A process by itself is a group of one, and its own chief.
"""

import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

_MEETING, _PATIENCE = timedelta(minutes=5), timedelta(minutes=30)
"""How long one waits for the others: to be started, and while they compute, or are stuck on a node that is gone."""


@dataclass(frozen=True)
class Group:
    rank: int
    size: int
    chief: int = 0
    """The chief's rank."""
    local_rank: int = 0
    """Among those on this machine."""
    local_size: int = 1
    store: Store | None = None
    """What all processes of the group can write to and read."""

    @classmethod
    def alone(cls) -> "Group":
        """A process by itself."""
        return cls(0, 1)

    @classmethod
    def join(cls, leads: bool, has_gpu: bool) -> "Group":
        """The group of the processes that torchrun started with this one.

        Args:
            leads: whether this process could be the chief; the first of those is, or else the first of all.
            has_gpu: whether it has a GPU of its own, that of its rank on this machine.
        """
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if has_gpu:
            torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        distributed.init_process_group(backend, timeout=_PATIENCE, world_size=size, rank=rank, store=store)
        group = cls(rank, size, 0, local_rank, local_size, store)
        leaders = group.gather(leads)
        return replace(group, chief=leaders.index(True) if True in leaders else 0)

    @property
    def is_chief(self) -> bool:
        return self.rank == self.chief

    def leave(self) -> None:
        """End the exchange with the others; whoever captured some of it as a CUDA graph has let go of that."""
        if self.size > 1:
            gc.collect()  # NCCL waits for ever for the end of a graph with an exchange in it
            distributed.destroy_process_group()

    def announce(self, end: str, seconds: float) -> None:
        """Tell all processes why they end, and wait so many seconds at most until they have heard."""
        if self.store is None:
            return
        with suppress(distributed.DistError):  # whoever keeps the store is gone
            self.store.set("end", end)
            deadline = time.monotonic() + seconds
            while self.store.add("heard", 0) < self.size and time.monotonic() < deadline:
                time.sleep(0.1)

    def announced(self) -> str | None:
        """What another has announced; asked for once by each process where there is something.

        Raises:
            DistError: the process that keeps the store is gone.
        """
        if self.store is None or not self.store.check(["end"]):
            return None
        self.store.add("heard", 1)
        return str(self.store.get("end"), "utf-8")

    def share(self, value: T) -> T:
        """The chief's `value`, in every process."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, self.chief, device=torch.device("cpu"))
        return values[0]

    def share_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The chief's tensors, in every process; on the CPU in those that had none."""
        if self.size == 1:
            return tensors
        shapes = self.share([(name, value.shape, value.dtype) for name, value in tensors.items()])
        found = {}
        for name, shape, dtype in shapes:
            found[name] = tensors[name].contiguous() if self.is_chief else torch.empty(shape, dtype=dtype)
            distributed.broadcast(found[name], self.chief)
        return found

    def gather(self, value: T) -> list[T]:
        """Every process's `value`, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def agree(self, value: int, choose: Callable[[list[int]], int]) -> int:
        """What `choose` makes of every process's number; quicker than `gather`."""
        if self.size == 1:
            return choose([value])
        found = [torch.empty((), dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(found, torch.tensor(value))
        return choose([int(one) for one in found])

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, elementwise; `values` are used up."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def share_of(self, items: int) -> slice:
        """Which of `items` this process computes, in groups as even as can be."""
        each = -(-items // self.size)
        return slice(self.rank * each, (self.rank + 1) * each)

    def to_owners(self, mine: Tensor, rows: int) -> Tensor:
        """Some whole matrices for each process.

        Args:
            mine: (N, own rows, columns): of each of N matrices, what this process has, as torch.chunk cuts them.
            rows: of a whole matrix.

        Returns:
            (n, rows, columns): this process's N / size of them, rounded up; those beyond N are zeros.
        """
        each, most = -(-len(mine) // self.size), -(-rows // self.size)
        given = mine.new_zeros(self.size * each, most, mine.shape[2])
        given[: len(mine), : mine.shape[1]] = mine
        found = torch.empty_like(given)
        distributed.all_to_all_single(found, given)
        return found.view(self.size, each, most, -1).transpose(0, 1).flatten(1, 2)[:, :rows]

    def from_owners(self, owned: Tensor, items: int, own_rows: int) -> Tensor:
        """The way back: of each of `items` matrices the rows that this process has, (items, own_rows, columns)."""
        each, rows, columns = owned.shape
        most = -(-rows // self.size)
        padded = owned.new_zeros(each, self.size * most, columns)
        padded[:, :rows] = owned
        given = padded.view(each, self.size, most, columns).transpose(0, 1).contiguous()
        found = torch.empty_like(given)
        distributed.all_to_all_single(found, given)
        return found.flatten(0, 1)[:items, :own_rows]

    def join_shares(self, mine: Tensor, items: int) -> Tensor:
        """All of `items` rows, of which each process has its share of `share_of`, in every process."""
        if self.size == 1:
            return mine
        each = -(-items // self.size)
        padded = mine.new_zeros(each, *mine.shape[1:])
        padded[: len(mine)] = mine
        whole = mine.new_empty(each * self.size, *mine.shape[1:])
        distributed.all_gather(list(whole.chunk(self.size)), padded)
        return whole[:items]
