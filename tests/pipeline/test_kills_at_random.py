"""kill -9 again and again, at random moments: each start goes on, and the end is that of a run left alone."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.training_runs import assert_equals_undisturbed, clone, journal, last_step, resumes, undisturbed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("stage", "kills", "length"), [("pretrain", 12, 200), ("finetune", 4, 120)])
def test_kills_at_random_moments_change_nothing(stage: str, kills: int, length: int, tmp_path: Path) -> None:
    """kill -9 of DVC and the trainer, again and again, each after a resume from a step above 0."""
    lengths = {"pretrain": 60, "finetune": 8, stage: length}
    first = lengths["pretrain"] if stage == "finetune" else 0
    killed = clone(tmp_path / "project", **lengths)
    generator = random.Random(1337)
    # after the first checkpoint, in or between steps; or right after the resume, where the journal is there already
    targets = sorted(generator.sample(range(first + 8, first + length // 2), kills))
    for number, target in enumerate(targets):
        output = tmp_path / f"output-{number}.txt"
        with output.open("w") as file, killed.start(stdout=file) as process:
            while (
                last_step(killed.directory, stage) < target
                or len(resumes(killed.directory, stage)) < number
                or not list(killed.directory.glob(f".resume/{stage}/*/checkpoints/step-*"))
            ):
                assert process.poll() is None, f"ended before kill {number} at step {target}\n{output.read_text()}"
                time.sleep(0.005)
            time.sleep(generator.random() * 0.02)
            os.killpg(process.pid, signal.SIGKILL)
    resumed = resumes(killed.directory, stage)
    killed.repro()
    assert len(resumed) == kills - 1
    assert min(resumed) > first
    assert resumed == sorted(resumed)
    assert_equals_undisturbed(killed, lengths["pretrain"], lengths["finetune"])


def test_kills_of_tokenize_at_random_moments_change_nothing(tmp_path: Path) -> None:
    killed = clone(tmp_path / "project", with_tokens=False, pretrain=60, finetune=8)
    generator = random.Random(1337)
    seconds = undisturbed(pretrain=60, finetune=8).json("reports/tokenize/run.json")["wall_seconds"]
    for number in range(4):
        output = tmp_path / f"output-{number}.txt"
        with output.open("w") as file, killed.start("tokenize", stdout=file) as process:
            while journal(killed.directory, "tokenize").count(b"MB each") <= number:
                assert process.poll() is None, f"ended before kill {number}\n{output.read_text()}"
                time.sleep(0.002)
            time.sleep(generator.random() * 0.6 * seconds)
            is_complete = bool(list(killed.directory.glob(".resume/tokenize/*/complete")))
            os.killpg(process.pid, signal.SIGKILL)
        assert not is_complete, "too late: the rest of the kills would find nothing to do"
    killed.repro()
    assert_equals_undisturbed(killed, pretrain=60, finetune=8)
