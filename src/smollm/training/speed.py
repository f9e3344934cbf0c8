"""How fast a stage trains, all of its restarts included: speed, MFU, goodput; and how the ranks compare."""

from smollm.device.group import Group
from smollm.device.hardware import Hardware, seconds_since_start
from smollm.model.throughput import flops_per_token, model_flops_utilization, peak_tflops
from smollm.state.journal import Kind, Record
from smollm.training.settings import Settings

_PACE_STEPS, _PACE_SECONDS = 20, 30.0
"""After this many steps or seconds the pace is known: that of the fastest step but the first, a warm-up."""


class SpeedMeter:
    """Collects the seconds of steps, and turns them into the values of `speed` records."""

    def __init__(self, settings: Settings, hardware: Hardware, processes: int, earlier: list[Record]) -> None:
        """
        Args:
            settings: of the stage.
            hardware: of one process.
            processes: how many share a step.
            earlier: the records of earlier starts of the stage.
        """
        self.hardware, self.tokens_per_step = hardware, settings.training.tokens_per_step
        self._flops = flops_per_token(settings.model, settings.training.sequence_length)
        peak = peak_tflops(hardware.name) if hardware.device.type == "cuda" else None
        self._peak = None if peak is None else peak * processes
        speeds = [record.values for record in earlier if record.kind == Kind.SPEED]
        self._useful = speeds[-1]["useful_seconds"] if speeds else 0.0
        """Seconds spent in optimizer steps, earlier starts included."""
        self._lived_before = speeds[-1]["lived_seconds"] if speeds else 0.0
        self._window: list[float] = []
        """Seconds of the steps since the last record."""
        self._first_steps: list[float] | None = []

    def add(self, seconds: float) -> float | None:
        """Count a step; returns the pace, in seconds a step, once: as soon as it is known."""
        self._window.append(seconds)
        self._useful += seconds
        first = self._first_steps
        if first is None:
            return None
        first.append(seconds)
        if len(first) < _PACE_STEPS and (len(first) <= 2 or sum(first) <= _PACE_SECONDS):
            return None
        self._first_steps = None
        return min(first[1:])

    def record(self) -> dict[str, float | None]:
        """The speed over the steps since the last call."""
        seconds = sum(self._window) / len(self._window)
        self._window.clear()
        lived = self._lived_before + seconds_since_start()
        tokens_per_second = self.tokens_per_step / seconds
        mfu = None if self._peak is None else model_flops_utilization(tokens_per_second, self._flops, self._peak)
        return {
            "tokens_per_second": tokens_per_second,
            "step_ms": 1000 * seconds,
            "mfu": mfu,
            "goodput": self._useful / lived,
            "useful_seconds": self._useful,
            "lived_seconds": lived,
            "peak_memory_gib": self.hardware.peak_memory_gib(),
        }


def rank_values(group: Group, hardware: Hardware, tokens_per_second: float, is_sharded: bool) -> dict[str, float]:
    """How the ranks' speeds and peak memory differ; every rank of `group` calls it.

    Args:
        group: the ranks.
        hardware: of this rank.
        tokens_per_second: of this rank in validation, which unlike a step waits for no other rank.
        is_sharded: whether weights are sharded; validation does wait then, so speeds are left out.
    """
    everyone = group.all_gather((tokens_per_second, hardware.peak_memory_gib()))
    speeds, memory = zip(*everyone, strict=True)
    values = {"least_memory_gib": min(memory), "most_memory_gib": max(memory)}
    if is_sharded:
        return values
    slowest = min(range(group.size), key=lambda rank: speeds[rank])
    return {
        "slowest_rank": slowest,
        "slowest_tokens_per_second": speeds[slowest],
        "fastest_tokens_per_second": max(speeds),
        **values,
    }
