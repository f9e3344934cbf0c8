"""The learning rate at a step: warm-up, stable, linear decay (arXiv:2404.06395)."""

from smollm.config.training import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate at `step`, counted from 1, of a stage of `steps` steps.

    The warm-up rises linearly and reaches the peak at its last step. The decay falls linearly and would reach
    ``peak * final_lr_fraction`` one step after the last, so that even with a fraction of 0 the last step still trains.
    """
    assert 1 <= step <= steps, f"step {step} of {steps}"
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    decay_steps = round(schedule.decay_fraction * steps)
    left = steps + 1 - step
    if left > decay_steps:
        return peak
    floor = schedule.final_lr_fraction
    return peak * (floor + (1 - floor) * left / (decay_steps + 1))
