"""Dropout: which numbers are zeroed, and that nothing but the seeds and the place decides it."""

import pytest
import torch
from torch import Tensor

from smollm.model.dropout import Dropout

B, T, H, PLACES = 4, 64, 32, 5
IDS = torch.zeros(B, T, dtype=torch.long)
SEEDS = torch.tensor([7, 2**31 - 1, 0, 1])


def masks(rate: float = 0.25, seeds: Tensor = SEEDS) -> Tensor:
    """What is zeroed, (places, B, T, H) bool."""
    dropout = Dropout.of(seeds, rate, IDS[: len(seeds)], PLACES)
    return torch.stack([dropout(torch.ones(len(seeds), T, H), place) == 0 for place in range(PLACES)])


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5, 0.9])
def test_the_share_that_is_asked_for_is_zeroed_everywhere(rate: float) -> None:
    zeroed = masks(rate).double()
    deviations = (zeroed.mean((2, 3)) - rate).abs() / (rate * (1 - rate) / (T * H)) ** 0.5  # (places, B)
    assert deviations.max() < 4
    assert abs(zeroed.mean((0, 1, 3)) - rate).max() < 5 * (rate * (1 - rate) / (PLACES * B * H)) ** 0.5
    assert abs(zeroed.mean((0, 1, 2)) - rate).max() < 5 * (rate * (1 - rate) / (PLACES * B * T)) ** 0.5


def test_what_is_kept_is_scaled_so_that_the_expectation_stays() -> None:
    x = torch.randn(B, T, H, generator=torch.Generator().manual_seed(0))
    out = Dropout.of(SEEDS, 0.2, IDS, PLACES)(x, 1)
    assert torch.equal(out, torch.where(masks(0.2)[1], 0.0, x * torch.tensor(1 / 0.8)))
    assert Dropout.of(SEEDS, 0.2, IDS, PLACES)(x.bfloat16(), 1).dtype == torch.bfloat16


def test_masks_of_places_sequences_seeds_and_neighbours_have_nothing_in_common() -> None:
    rate, zeroed = 0.25, masks().double() - 0.25
    others = masks(seeds=SEEDS ^ 1).double() - 0.25  # a bit away
    products = {
        "places": zeroed[0] * zeroed[1],
        "sequences": zeroed[:, 0] * zeroed[:, 1],
        "seeds": zeroed * others,
        "neighbours in a position": zeroed[..., 1:] * zeroed[..., :-1],
        "positions": zeroed[..., 1:, :] * zeroed[..., :-1, :],
    }
    for name, product in products.items():
        deviation = rate * (1 - rate) / product.numel() ** 0.5
        assert abs(product.mean()) < 4 * deviation, name


def test_a_sequences_mask_does_not_depend_on_the_batch_around_it() -> None:
    assert torch.equal(masks()[:, 2:], masks(seeds=SEEDS[2:]))


def test_without_seeds_nothing_changes() -> None:
    x = torch.randn(B, T, H)
    assert torch.equal(Dropout.of(None, 0.5, IDS, PLACES)(x, 0), x)


def test_the_masks_stay_what_they_are() -> None:
    dropout = Dropout.of(torch.tensor([12345]), 0.5, torch.zeros(1, 2), 3)
    zeroed = [(dropout(torch.ones(1, 2, 8), place) == 0).int().flatten().tolist() for place in range(3)]
    assert zeroed == [
        [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1],
        [0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1],
        [1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1],
    ]
