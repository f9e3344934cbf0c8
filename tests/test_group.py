"""What processes of a group share: work, numbers, tensors."""

import pytest
import torch

from smollm.group import Group


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("items", [1, 2, 6, 30])
def test_shares_are_all_of_it_once_and_none_is_much_larger(items: int, size: int) -> None:
    shares = [list(range(items))[Group(rank, size).share_of(items)] for rank in range(size)]
    assert [one for share in shares for one in share] == list(range(items))
    assert max(map(len, shares)) == -(-items // size)


def test_a_process_by_itself_is_its_own_chief_and_agrees_with_itself() -> None:
    group = Group.alone()
    assert group.is_chief
    assert group.share("x") == "x"
    assert group.gather(3) == [3]
    assert group.agree(5, max) == 5
    numbers = torch.tensor([1.0, 2.0])
    assert group.sum(numbers.clone()).equal(numbers)
    assert group.join_shares(numbers, 2).equal(numbers)
    assert group.share_tensors({"a": numbers})["a"] is numbers
