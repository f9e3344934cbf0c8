"""The record of a running stage: each step once, whole lines, exact numbers."""

import math
from pathlib import Path

import pytest

from smollm.errors import StateError
from smollm.state.journal import Journal, Kind, Record, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def written(path: Path) -> list[Record]:
    return [record for record, _ in read(path)]


def test_records_are_read_in_the_order_they_were_appended(path: Path) -> None:
    journal = Journal(path)
    journal.append(Kind.STEP, 1, train_loss=10.5, gradient_norm=0.25)
    journal.append(Kind.VALIDATION, 1, loss=9.5)
    journal.append(Kind.STEP, 2, train_loss=10.0, gradient_norm=0.5)
    records = journal.records()
    assert [(record.kind, record.step, record.values) for record in records] == [
        ("step", 1, {"train_loss": 10.5, "gradient_norm": 0.25}),
        ("validation", 1, {"loss": 9.5}),
        ("step", 2, {"train_loss": 10.0, "gradient_norm": 0.5}),
    ]
    assert [record.time for record in records] == sorted(record.time for record in records)
    assert records == written(path)


def test_a_kind_of_another_version_is_read(path: Path) -> None:
    path.write_text('{"kind": "another", "step": 1, "time": 0.0, "loss": 2.0}\n')
    assert written(path) == [Record("another", 1, 0.0, {"loss": 2.0})]


def test_a_record_is_there_for_readers_at_once(path: Path) -> None:
    journal = Journal(path)
    journal.append(Kind.STEP, 1, train_loss=1.0)
    assert len(written(path)) == 1


def test_the_first_record_of_a_kind_and_step_stands(path: Path) -> None:
    journal = Journal(path)
    journal.append(Kind.STEP, 1, train_loss=1.0)
    journal.append(Kind.STEP, 1, train_loss=2.0)
    journal.close()
    again = Journal(path)  # of the process that resumes
    again.append(Kind.STEP, 1, train_loss=3.0)
    again.append(Kind.SPEED, 1, step_ms=4.0)
    assert [(record.kind, record.values) for record in again.records()] == [
        ("step", {"train_loss": 1.0}),
        ("speed", {"step_ms": 4.0}),
    ]


def test_any_number_of_events_share_a_step(path: Path) -> None:
    journal = Journal(path)
    journal.event(3, "resumed from step 3")
    journal.event(3, "resumed from step 3")
    assert [(record.kind, record.step, record.values["message"]) for record in journal.records()] == [
        (Kind.EVENT, 3, "resumed from step 3")
    ] * 2


def test_every_start_of_a_stage_has_its_hardware(path: Path) -> None:
    journal = Journal(path)
    journal.append(Kind.HARDWARE, 5, device="cpu")
    journal.append(Kind.HARDWARE, 5, device="cuda")
    assert [record.values["device"] for record in journal.records()] == ["cpu", "cuda"]


def test_a_full_disk_records_nothing_of_a_line_and_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.append(Kind.STEP, 1, train_loss=1.0)
    real = journal._file

    class Full:
        """Takes ten bytes more."""

        def write(self, line: bytes) -> int | None:
            return real.write(line[:10])

        def truncate(self, end: int) -> int:
            return real.truncate(end)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_file", Full())
        with pytest.raises(OSError, match="No space left on device") as caught:
            journal.append(Kind.STEP, 2, train_loss=2.0)
    assert caught.value.filename == str(path)
    journal.append(Kind.STEP, 2, train_loss=3.0)
    assert [(record.step, record.values["train_loss"]) for record in written(path)] == [(1, 1.0), (2, 3.0)]


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_is_cut_and_its_step_recorded_anew(path: Path, cut: int) -> None:
    journal = Journal(path)
    for step in (1, 2, 3):
        journal.append(Kind.STEP, step, train_loss=float(step))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [record.step for record in written(path)] == [1, 2]

    resumed = Journal(path)
    assert [record.step for record in written(path)] == [1, 2]
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    resumed.append(Kind.STEP, 3, train_loss=30.0)
    assert [record.values["train_loss"] for record in resumed.records()] == [1.0, 2.0, 30.0]


def test_a_file_of_one_torn_line_is_an_empty_journal(path: Path) -> None:
    path.write_bytes(b'{"kind": "step", "st')
    journal = Journal(path)
    assert journal.records() == []
    journal.append(Kind.STEP, 1, train_loss=1.0)
    assert len(journal.records()) == 1


FLOATS = [0.1 + 0.2, 1 / 3, math.pi, 5e-324, 1.7976931348623157e308, -0.0, 1e22, 123456789.12345679, 2.0**-149]


@pytest.mark.parametrize("value", FLOATS)
def test_a_number_comes_back_bit_for_bit(path: Path, value: float) -> None:
    journal = Journal(path)
    journal.append(Kind.STEP, 1, train_loss=value)
    (record,) = journal.records()
    assert record.values["train_loss"].hex() == value.hex()


def test_numbers_that_are_not_finite_come_back(path: Path) -> None:
    journal = Journal(path)
    journal.append(Kind.STEP, 1, up=math.inf, down=-math.inf, none=math.nan)
    (record,) = journal.records()
    assert record.values["up"] == math.inf
    assert record.values["down"] == -math.inf
    assert math.isnan(record.values["none"])


TEXTS = ["猫は🐈‍⬛", "line\nend\r\n", "\u2028\u2029\x85\x0b\x0c", "\x00\x1b[0m", '"quoted" \\ {}', "\ufffd\ufeff", ""]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_a_text_comes_back_as_it_was(path: Path, text: str) -> None:
    journal = Journal(path)
    journal.append(Kind.SAMPLE, 50, prompts=[text], texts=[text + text])
    journal.append(Kind.SAMPLE, 100, prompts=["after"], texts=["it"])
    first, second = journal.records()
    assert first.values == {"prompts": [text], "texts": [text + text]}
    assert second.step == 100


def test_none_and_lists_and_booleans_come_back(path: Path) -> None:
    journal = Journal(path)
    journal.append(Kind.SPEED, 1, mfu=None, compiled=True, sizes=[1, 2])
    assert journal.records()[0].values == {"mfu": None, "compiled": True, "sizes": [1, 2]}


def test_an_offset_lets_a_reader_go_on_after_any_record(path: Path) -> None:
    journal = Journal(path)
    for step in range(1, 6):
        journal.append(Kind.SAMPLE, step, texts=["🐈" * step])
    pairs = list(read(path))
    for index, (_, offset) in enumerate(pairs):
        assert [record for record, _ in read(path, offset)] == [record for record, _ in pairs[index + 1 :]]
    assert pairs[-1][1] == path.stat().st_size
    journal.append(Kind.SAMPLE, 6, texts=["new"])
    ((record, _),) = read(path, pairs[-1][1])
    assert record.step == 6


def test_a_reader_waits_before_a_line_that_is_not_whole_yet(path: Path) -> None:
    journal = Journal(path)
    journal.append(Kind.STEP, 1, train_loss=1.0)
    journal.append(Kind.STEP, 2, train_loss=2.0)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    ((record, offset),) = read(path)
    assert record.step == 1
    path.write_bytes(whole)
    ((record, _),) = read(path, offset)
    assert record.step == 2


def test_a_journal_that_is_not_there_has_no_records(path: Path) -> None:
    assert written(path) == []


def test_syncing_and_closing_keep_what_was_recorded(path: Path) -> None:
    journal = Journal(path)
    journal.append(Kind.STEP, 1, train_loss=1.0)
    journal.sync()
    journal.close()
    assert len(written(path)) == 1


@pytest.mark.parametrize("damage", [b"\0\0\0\0\n", b'{"kind": "step"}\n', b"[1]\n", b"7\n", b"\xff\n"])
def test_a_damaged_line_is_named_with_its_place(path: Path, damage: bytes) -> None:
    Journal(path).append(Kind.STEP, 1, train_loss=1.0)
    end = path.stat().st_size
    with path.open("ab") as file:
        file.write(damage)
    with pytest.raises(StateError, match=rf"the line at byte {end} is damaged; remove .* to start the stage over"):
        Journal(path)
