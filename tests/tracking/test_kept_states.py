"""The line on a state that an edit has abandoned."""

from pathlib import Path

from smollm.state.files import write_json
from smollm.state.journal import Journal, Kind
from smollm.state.saved_state import SavedState
from smollm.tracking.kept_states import kept_state_line

NOW = {"seed": 1, "pretrain": {"optimizer": {"lr": 0.003, "beta1": 0.9}}}


def kept(directory: Path, lr: float = 0.003, code: str = "a", text: str = "t") -> SavedState:
    """A state of so and so many bytes, at step 4000, of another version."""
    folder = directory / "pretrain" / "0123456789abcdef"
    params = {"seed": 1, "pretrain": {"optimizer": {"lr": lr, "beta1": 0.9}}}
    write_json(folder / "fingerprinted.json", {"inputs": {"src": code, "data": text}, "params": params})
    Journal(folder / "journal.jsonl").append(Kind.STEP, 4000, train_loss=2.0)
    with (folder / "weights").open("wb") as file:
        file.truncate(2_400_000_000)
    return SavedState("pretrain", folder)


def test_it_says_what_is_kept_how_large_it_is_the_way_back_and_the_way_out(tmp_path: Path) -> None:
    line = kept_state_line(kept(tmp_path, lr=0.01, code="b"), {"src": "a", "data": "t"}, NOW)
    assert line == (
        "pretrain: keeping .resume/pretrain/0123456789abcdef (at step 4000, 2.4 GB), which has lr=0.01, another src; "
        "undo the edit (or `git checkout` its commit) and `dvc repro` continues it; "
        "`make drop STATE=pretrain/0123456789abcdef` removes it"
    )


def test_a_finished_one_is_said_to_be(tmp_path: Path) -> None:
    state = kept(tmp_path)
    (state.directory / "complete").touch()
    assert "(finished, 2.4 GB); undo" in kept_state_line(state, {"src": "a", "data": "t"}, NOW)


def test_the_line_stays_one_line_however_much_was_edited(tmp_path: Path) -> None:
    state = kept(tmp_path)
    edited = {f"prompt{number}": "long\n" * 100 for number in range(5)}
    write_json(state.directory / "fingerprinted.json", {"inputs": {"src": "b"}, "params": edited})
    line = kept_state_line(state, {"src": "a"}, NOW)
    assert "\n" not in line
    assert "3 more" in line
    assert len(line) < 600


def test_a_state_without_a_version_is_named_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "pretrain" / "0123").mkdir(parents=True)
    line = kept_state_line(SavedState("pretrain", tmp_path / "pretrain" / "0123"), {}, NOW)
    assert line.startswith("pretrain: keeping .resume/pretrain/0123 (unfinished, 0.0 MB); undo")
