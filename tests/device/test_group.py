"""What processes of a group share: work, numbers, tensors."""

import pytest
import torch

from smollm.device.group import Group


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("items", [1, 2, 6, 30])
def test_shares_are_all_of_it_once_and_none_is_much_larger(items: int, size: int) -> None:
    shares = [list(range(items))[Group(rank, size).local_slice(items)] for rank in range(size)]
    assert [one for share in shares for one in share] == list(range(items))
    assert max(map(len, shares)) == -(-items // size)


def test_a_process_by_itself_is_its_own_rank_zero_and_agrees_with_itself() -> None:
    group = Group.single()
    assert group.is_rank_zero
    assert group.broadcast("x") == "x"
    assert group.all_gather(3) == [3]
    assert group.all_reduce(5, max) == 5
    numbers = torch.tensor([1.0, 2.0])
    assert group.sum(numbers.clone()).equal(numbers)
    assert group.all_gather_rows(numbers, 2).equal(numbers)
    assert group.broadcast_tensors({"a": numbers})["a"] is numbers
