"""What each of several trials at a time gets of the machine."""

import pytest

from smollm.sweep.shares import shares, visible_gpus


def test_one_trial_gets_everything() -> None:
    assert shares(1, ["0", "1"], cores=8) == [{}]


@pytest.mark.parametrize(
    ("jobs", "gpus", "expected"),
    [
        (2, "0 1 2 3", ["0,1", "2,3"]),
        (2, "0 1 2", ["0", "1,2"]),
        (2, "GPU-a GPU-b", ["GPU-a", "GPU-b"]),
        (4, "0 1", ["0", "1", "0", "1"]),
        (3, "5", ["5", "5", "5"]),
    ],
)
def test_gpus_are_divided_or_shared(jobs: int, gpus: str, expected: list[str]) -> None:
    assert shares(jobs, gpus.split(), cores=8) == [{"CUDA_VISIBLE_DEVICES": names} for names in expected]


def test_without_gpus_cores_are_divided() -> None:
    assert shares(2, [], cores=8) == 2 * [{"OMP_NUM_THREADS": "4"}]
    assert shares(4, [], cores=2) == 4 * [{"OMP_NUM_THREADS": "1"}]


def test_the_environment_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-a")
    assert visible_gpus() == ["2", "GPU-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []
