"""The exchange of rows for whole matrices, in a group of threads; and a single process, where nothing is sharded."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from smollm.device.group import Group
from smollm.model.sharding import copy_to_host, gather_matrices, local_parts, map_matrices, scatter_rows, total_norm


class Threads:
    """Runs a function as each rank of a group, in threads that exchange tensors as processes would."""

    def __init__(self, size: int, patch: pytest.MonkeyPatch) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=30)
        self._sent: dict[int, Tensor] = {}
        self._rank = threading.local()
        patch.setattr(distributed, "all_to_all_single", self._all_to_all)

    def _all_to_all(self, received: Tensor, sent: Tensor) -> None:
        """The r-th part of what each rank sends goes to rank r, in the order of the senders."""
        self._sent[self._rank.value] = sent
        self._barrier.wait()
        parts = [self._sent[rank].chunk(self.size)[self._rank.value] for rank in range(self.size)]
        received.copy_(torch.cat(parts))
        self._barrier.wait()

    def run(self, work: Callable[[Group], Any]) -> list[Any]:
        """What `work` returns on each rank."""
        results: list[Any] = [None] * self.size

        def run_rank(rank: int) -> None:
            self._rank.value = rank
            results[rank] = work(Group(rank, self.size))

        threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def rows_of(matrices: Tensor, group: Group) -> Tensor:
    """What a rank holds of each matrix: the chunk of rows that torch gives it, which may be empty."""
    chunks = matrices.chunk(group.size, dim=1)
    return chunks[group.rank] if group.rank < len(chunks) else matrices[:, :0]


SIZES = pytest.mark.parametrize("size", [1, 2, 3, 4])
SHAPES = pytest.mark.parametrize("shape", [(5, 8, 3), (4, 7, 2), (1, 6, 2), (2, 3, 4), (7, 5, 1)], ids=str)


@SIZES
@SHAPES
def test_each_rank_gets_its_share_of_the_matrices_whole(
    monkeypatch: pytest.MonkeyPatch, size: int, shape: tuple[int, ...]
) -> None:
    matrices = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    count, rows, _ = shape
    whole = Threads(size, monkeypatch).run(lambda group: gather_matrices(rows_of(matrices, group), rows, group))
    for rank, mine in enumerate(whole):
        expected = matrices[Group(rank, size).local_slice(count)]
        assert mine.shape == (-(-count // size), rows, shape[2])
        assert torch.equal(mine[: len(expected)], expected)
        assert not mine[len(expected) :].any()


@SIZES
@SHAPES
def test_scattering_gives_back_the_rows_of_every_matrix(
    monkeypatch: pytest.MonkeyPatch, size: int, shape: tuple[int, ...]
) -> None:
    matrices = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    count, rows, _ = shape

    def there_and_back(group: Group) -> Tensor:
        mine = rows_of(matrices, group)
        return scatter_rows(-gather_matrices(mine, rows, group), count, mine.shape[1], group)

    for rank, mine in enumerate(Threads(size, monkeypatch).run(there_and_back)):
        assert torch.equal(mine, -rows_of(matrices, Group(rank, size)))


def test_a_function_of_matrices_that_are_not_sharded_is_applied_to_each() -> None:
    matrices = list(torch.arange(24.0).view(3, 2, 4))
    doubled = map_matrices(lambda stack: 2 * stack, matrices, matrices[0], Group.single())
    assert torch.equal(doubled, 2 * torch.stack(matrices))


def test_tensors_that_are_not_sharded_are_taken_as_they_are() -> None:
    one, other = torch.tensor([3.0]), torch.tensor([[4.0]])
    assert local_parts([one, other])[1] is other
    assert total_norm([one, other]).item() == 5.0
    copies = copy_to_host({"one": one}, keep=True)
    assert torch.equal(copies["one"], one)
    assert copies["one"].data_ptr() != one.data_ptr()
    assert copy_to_host({"one": one}, keep=False) == {}
