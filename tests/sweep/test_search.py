"""What a study remembers, which values it chooses, and which trials it prunes."""

from pathlib import Path

import pytest

pytest.importorskip("optuna")

from smollm.errors import PipelineError, StorageError
from smollm.sweep import search as search_module
from smollm.sweep import table
from smollm.sweep.search import Outcome, Search, storage_errors
from smollm.sweep.study_file import Plan, PrunerConfig, PrunerKind, SamplerKind, Space, Stage, Study

SPACES = {
    "pretrain.optimizer.lr": Space(1e-4, 1e-1, is_log=True),
    "pretrain.schedule.warmup_steps": Space(0, 5, is_whole=True),
    "pretrain.export": Space(choices=("best", "last")),
}


def study(trials: int = 4, sampler: SamplerKind = SamplerKind.RANDOM, kind: PrunerKind = PrunerKind.MEDIAN) -> Study:
    pruner = PrunerConfig(kind, first_trials=1, first_step=10)
    return Study(Path("rates.yaml"), Plan(Stage.PRETRAIN, trials, sampler, 1, pruner), SPACES, {})


def test_a_trial_keeps_its_values_and_its_place_after_a_kill(tmp_path: Path) -> None:
    search = Search(study(), tmp_path)
    number = search.ask()
    values = search.choose(number)
    assert 1e-4 <= float(str(values["pretrain.optimizer.lr"])) <= 1e-1
    assert values["pretrain.schedule.warmup_steps"] in range(6)
    assert not search.report(number, 10, 3.0)

    after = Search(study(), tmp_path)
    assert after.unfinished() == [number]
    assert after.remaining() == 3, "it counts as begun"
    assert after.choose(number) == values
    assert not after.report(number, 10, 3.0), "again"
    after.tell(number, Outcome.COMPLETE, 2.5)
    assert after.unfinished() == []
    (row,) = Search(study(), tmp_path).rows()
    assert (row.outcome, row.bits_per_byte, row.step, row.values) == (Outcome.COMPLETE, 2.5, 10, values)


def test_a_trial_killed_before_its_values_were_chosen_gets_the_same(tmp_path: Path) -> None:
    undisturbed, killed = (tmp_path / name for name in ("a", "b"))
    undisturbed.mkdir()
    killed.mkdir()
    search = Search(study(), undisturbed)
    values = search.choose(search.ask())
    Search(study(), killed).ask()
    after = Search(study(), killed)
    (number,) = after.unfinished()
    assert after.choose(number) == values
    assert after.rows()[0].values == values


@pytest.mark.parametrize("sampler", SamplerKind)
def test_kills_do_not_change_the_values_that_are_chosen(tmp_path: Path, sampler: SamplerKind) -> None:
    def choose(directory: Path, is_killed: bool) -> list[object]:
        directory.mkdir()
        chosen: list[object] = []
        search = Search(study(sampler=sampler), directory)
        for value in (3.0, 2.0, 1.0):
            number = search.ask()
            search = Search(study(sampler=sampler), directory) if is_killed else search
            chosen.append(search.choose(number))
            search.tell(number, Outcome.COMPLETE, value)
        return chosen

    undisturbed = choose(tmp_path / "a", is_killed=False)
    assert choose(tmp_path / "b", is_killed=True) == undisturbed
    assert len({str(values) for values in undisturbed}) == 3


def test_a_trial_that_is_worse_than_the_median_is_pruned(tmp_path: Path) -> None:
    search = Search(study(), tmp_path)
    first = search.ask()
    assert not any(search.report(first, step, 4.0 - step / 100) for step in (0, 10, 20))
    search.tell(first, Outcome.COMPLETE, 3.8)
    worse, better = search.ask(), search.ask()
    assert not search.report(worse, 5, 9.0), "before first_step"
    assert search.report(worse, 10, 9.0)
    search.tell(worse, Outcome.STOPPED)
    assert not search.report(better, 10, 3.0)
    assert [row.outcome for row in search.rows()] == [Outcome.COMPLETE, Outcome.STOPPED, Outcome.RUNNING]


def test_without_a_pruner_none_is_pruned(tmp_path: Path) -> None:
    search = Search(study(kind=PrunerKind.NONE), tmp_path)
    first, second = search.ask(), search.ask()
    search.report(first, 20, 1.0)
    search.tell(first, Outcome.COMPLETE, 1.0)
    assert not search.report(second, 20, 9.0)


def test_failed_trials_are_replaced_and_diverged_ones_count(tmp_path: Path) -> None:
    search = Search(study(trials=2), tmp_path)
    search.tell(search.ask(), Outcome.FAILED, reason="params.yaml: no")
    search.tell(search.ask(), Outcome.DIVERGED, reason="the loss must be finite")
    assert search.remaining() == 1
    assert [row.reason for row in search.rows()] == ["params.yaml: no", "the loss must be finite"]
    assert Search(study(trials=5), tmp_path).remaining() == 4, "more trials were asked for"


def test_the_table_has_the_best_first_and_says_how_to_have_it(tmp_path: Path) -> None:
    search = Search(study(), tmp_path)
    for value in (3.0, 2.0):
        number = search.ask()
        search.choose(number)
        search.tell(number, Outcome.COMPLETE, value)
    stopped = search.ask()
    search.report(stopped, 10, 9.0)
    search.tell(stopped, Outcome.STOPPED)
    search.tell(search.ask(), Outcome.FAILED, reason="no room")
    lines = table.text("rates", search.rows()).splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["rates-1", "complete"],
        ["rates-0", "complete"],
        ["rates-2", "stopped"],
        ["rates-3", "failed"],
    ]
    assert (
        lines[-1]
        == "rates: rates-1 is best, 2.0000 bits per byte; `dvc exp apply rates-1` brings it into the workspace"
    )
    table.write(tmp_path / "trials.csv", "rates", search.rows())
    assert (tmp_path / "trials.csv").read_text().startswith("trial,outcome,pretrain.optimizer.lr,")


def test_a_missing_optuna_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(search_module.sys.modules, "optuna", None)
    with pytest.raises(PipelineError, match=r"a study needs optuna, which is not installed; run `\S+ -m pip install"):
        Search(study(), tmp_path)


def test_a_damaged_database_is_one_line_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    with (
        pytest.raises(StorageError, match=r"cannot read or write \S+study\.db \('file is not a database'\); fix that"),
        storage_errors(tmp_path),
    ):
        Search(study(), tmp_path)
