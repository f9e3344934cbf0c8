"""The learning rate at the corners of warm-up, stable and decay."""

import pytest

from smollm.config.training import ScheduleConfig
from smollm.training.schedule import learning_rate

PEAK = 0.02


def rates(steps: int, warmup_steps: int, decay_fraction: float, final_lr_fraction: float = 0.0) -> list[float]:
    schedule = ScheduleConfig(warmup_steps, decay_fraction, final_lr_fraction)
    return [learning_rate(step, steps, PEAK, schedule) for step in range(1, steps + 1)]


def peaks(fractions: list[float]) -> object:
    return pytest.approx([PEAK * fraction for fraction in fractions], rel=1e-12, abs=1e-18)


def test_a_whole_schedule_rises_stays_and_falls() -> None:
    assert rates(10, warmup_steps=4, decay_fraction=0.4) == peaks([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_the_last_warmup_step_is_exactly_the_peak() -> None:
    assert rates(1000, warmup_steps=7, decay_fraction=0.0)[6] == PEAK


def test_the_first_step_of_a_warmup_is_not_lost_to_a_rate_of_zero() -> None:
    assert rates(1000, warmup_steps=250, decay_fraction=0.4)[0] == pytest.approx(PEAK / 250, rel=1e-12)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert rates(10, warmup_steps=0, decay_fraction=0.5)[0] == PEAK


def test_the_decay_starts_after_the_last_stable_step_and_ends_one_step_after_the_last() -> None:
    of_preset = rates(5000, warmup_steps=250, decay_fraction=0.4)
    assert of_preset[249:3000] == [PEAK] * 2751
    # the 2000 steps of the decay and the one at which it would end are 2001 equal parts
    assert of_preset[3000] == pytest.approx(PEAK * 2000 / 2001, rel=1e-12)
    assert of_preset[4998] == pytest.approx(PEAK * 2 / 2001, rel=1e-12)
    assert of_preset[4999] == pytest.approx(PEAK / 2001, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 50, 5000])
@pytest.mark.parametrize("decay_fraction", [0.0, 0.4, 1.0])
def test_no_step_has_a_rate_of_zero(steps: int, decay_fraction: float) -> None:
    assert min(rates(steps, warmup_steps=0, decay_fraction=decay_fraction)) > 0


def test_the_decay_ends_at_the_final_fraction() -> None:
    assert rates(4, warmup_steps=0, decay_fraction=0.5, final_lr_fraction=0.1) == peaks([1, 1, 0.7, 0.4])


def test_a_final_fraction_of_one_is_no_decay() -> None:
    assert rates(5, warmup_steps=0, decay_fraction=1.0, final_lr_fraction=1.0) == peaks([1] * 5)


def test_a_decay_fraction_of_zero_keeps_the_peak_to_the_end() -> None:
    assert rates(5, warmup_steps=2, decay_fraction=0.0) == peaks([0.5, 1, 1, 1, 1])


def test_a_decay_fraction_of_one_falls_from_the_first_step() -> None:
    assert rates(5, warmup_steps=0, decay_fraction=1.0) == peaks([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_a_warmup_may_meet_the_decay_without_a_stable_part() -> None:
    assert rates(4, warmup_steps=2, decay_fraction=0.5) == peaks([0.5, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize(("warmup_steps", "decay_fraction"), [(0, 0.0), (1, 0.0), (0, 0.4)])
def test_a_single_step_has_the_peak(warmup_steps: int, decay_fraction: float) -> None:
    assert rates(1, warmup_steps, decay_fraction, final_lr_fraction=0.3) == [PEAK]


def test_a_single_step_that_is_all_decay_has_the_rate_midway_to_the_final_one() -> None:
    assert rates(1, warmup_steps=0, decay_fraction=1.0, final_lr_fraction=0.3) == peaks([0.65])


@pytest.mark.parametrize("step", [0, 11])
def test_a_step_outside_the_stage_is_a_bug(step: int) -> None:
    with pytest.raises(AssertionError, match=f"step {step} of 10"):
        learning_rate(step, 10, PEAK, ScheduleConfig(0, 0.0, 0.0))
