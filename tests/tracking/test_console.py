"""What is printed where nobody watches a terminal, and where nobody listens at all."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.structure import ROOT

from smollm.tracking import console as progress
from smollm.tracking.console import ProgressBar


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_a_line_comes_now_and_then_and_at_the_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = ProgressBar("train", 10, initial=2)
    for _ in range(8):
        clock.now += 5
        bar.update(1, loss="1.5")
    bar.close()
    assert capsys.readouterr().out.splitlines() == [
        "train: step 5/10  loss 1.5  00:25 left",
        "train: step 8/10  loss 1.5  00:10 left",
        "train: step 10/10  loss 1.5  00:00 left",
    ]


def test_a_total_that_is_unknown_is_not_promised(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = ProgressBar("read", None, unit="B")
    clock.now += 20
    bar.update(1_234_567)
    assert capsys.readouterr().out == "read: 1.23MB\n"


TRAIN = """
from smollm.tracking.console import ProgressBar, say
say("begun")
bar = ProgressBar("train", 3)
input()
for _ in range(3):
    bar.update(1)
    say("heard by nobody")
bar.close()
open("done", "w").close()
"""


def test_training_goes_on_when_nobody_listens_any_more(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "begun\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        process.wait()
    assert (tmp_path / "done").exists()


def test_a_text_that_the_output_cannot_show_ends_no_stage() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from smollm.stage import run; run.main(lambda: run.say('\u4f60!'))"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\\u4f60!\n"
