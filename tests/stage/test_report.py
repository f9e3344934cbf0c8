"""Reports from a journal: tables, metrics, log and picture."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from smollm.stage import report
from smollm.state.journal import Journal, Kind, Record


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.event(0, "what it will do")
    journal.append(Kind.VALIDATION, 0, loss=6.0, bits_per_byte=4.0)
    for step in (1, 10, 20):
        journal.append(Kind.STEP, step, train_loss=5.0 / step, gradient_norm=0.1, learning_rate=0.3)
        journal.append(
            Kind.SPEED,
            step,
            tokens_per_second=100.0 * step,
            step_ms=1.5,
            mfu=None,
            goodput=step / 100,
            peak_memory_gib=2.0,
        )
    journal.append(Kind.VALIDATION, 10, loss=3.0, bits_per_byte=2.0)
    journal.append(Kind.VALIDATION, 20, loss=3.3, bits_per_byte=2.2)
    journal.append(Kind.SKIP, 12, loss_scale=65536.0, total=1)
    journal.append(Kind.SAMPLE, 20, prompts=["def ", "x"], texts=['a\tb\n"c"', " = 1"])
    return journal.records()


def write(directory: Path, records: list[Record], exported_step: int = 10) -> None:
    metrics = report.training_metrics(records, best_step=10, exported_step=exported_step)
    report.write_training(directory, "loss", records, {**metrics, "parameters": 7})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_tables_hold_every_record_exactly(records: list[Record], tmp_path: Path) -> None:
    write(tmp_path, records)
    losses = read(tmp_path / "losses.tsv")
    assert list(losses[0]) == ["step", "train_loss", "gradient_norm", "learning_rate"]
    assert [(int(row["step"]), float(row["train_loss"])) for row in losses] == [(1, 5.0), (10, 0.5), (20, 0.25)]
    validation = read(tmp_path / "validation.tsv")
    assert [row["bits_per_byte"] for row in validation] == ["4.0", "2.0", "2.2"]
    assert list(validation[0]) == ["step", "validation_loss", "bits_per_byte"]


def test_a_number_that_is_unknown_here_has_no_column(records: list[Record], tmp_path: Path) -> None:
    write(tmp_path, records)
    assert "mfu" not in read(tmp_path / "speed.tsv")[0]


def test_samples_survive_tabs_quotes_and_line_breaks(records: list[Record], tmp_path: Path) -> None:
    write(tmp_path, records)
    assert [(row["prompt"], row["text"]) for row in read(tmp_path / "samples.tsv")] == [
        ("def ", 'a\tb\n"c"'),
        ("x", " = 1"),
    ]


def test_metrics_are_first_last_and_best(records: list[Record], tmp_path: Path) -> None:
    write(tmp_path, records)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "step": 20,
        "initial_step": 0,
        "best_step": 10,
        "exported_step": 10,
        "first_train_loss": 5.0,
        "train_loss": 0.25,
        "validation_loss": 3.3,
        "bits_per_byte": 2.2,
        "best_bits_per_byte": 2.0,
        "exported_bits_per_byte": 2.0,
        "initial_bits_per_byte": 4.0,
        "skipped_steps": 1,
        "parameters": 7,
    }


def test_speed_is_the_median_and_stays_out_of_the_exact_files(records: list[Record], tmp_path: Path) -> None:
    assert report.speed_metrics(records) == {
        "tokens_per_second": 1000.0,
        "step_ms": 1.5,
        "goodput": 0.2,
        "peak_memory_gib": 2.0,
    }
    write(tmp_path, records)
    for name in ("metrics.json", "losses.tsv", "validation.tsv", "samples.tsv"):
        assert "tokens_per_second" not in (tmp_path / name).read_text()


def test_the_log_has_a_line_for_each_record(records: list[Record], tmp_path: Path) -> None:
    report.write_log(tmp_path / "log.txt", records)
    text = (tmp_path / "log.txt").read_text()
    assert "  what it will do\n" in text
    assert "step 10  step  train_loss 0.5  gradient_norm 0.1  learning_rate 0.3\n" in text
    assert '    def a\tb\n    "c"\n    x = 1\n' in text


def test_the_picture_is_an_svg_and_the_same_bytes_each_time(records: list[Record], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, records)
    first, second = ((tmp_path / name / "loss.svg").read_bytes() for name in ("a", "b"))
    assert first == second
    assert ElementTree.fromstring(first).tag.endswith("svg")


@pytest.mark.parametrize(("best_step", "is_marked"), [(10, True), (20, False)])
def test_the_picture_marks_the_best_state_where_it_is_not_the_last(
    records: list[Record], tmp_path: Path, best_step: int, is_marked: bool
) -> None:
    metrics = report.training_metrics(records, best_step, exported_step=20)
    report.write_training(tmp_path, "loss", records, metrics)
    assert (f"best, step {best_step}" in (tmp_path / "loss.svg").read_text()) is is_marked
