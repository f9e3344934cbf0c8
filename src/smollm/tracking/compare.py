"""A table of all runs: what differs in their params and hardware, how well they did, how fast they were.

Runs that differ in their seed alone follow in a second table, as mean and standard deviation.

``python3 -m smollm.tracking.compare [--stage S] [--sort COLUMN] [--descending] [--csv FILE]`` (`make compare`)
"""

import argparse
from pathlib import Path

import pandas as pd

from smollm.config.file import load
from smollm.errors import ConfigError
from smollm.state.workspace import Workspace
from smollm.tracking.deadline import within
from smollm.tracking.mlflow_store import MlflowStore
from smollm.tracking.repeats import repeats, text
from smollm.tracking.sweep_run import SWEEP

_ANSWER_SECONDS = 300.0
"""How long MLflow may take to give all runs."""

_COLUMNS = {
    "tags.mlflow.runName": "run",
    "tags.stage": "stage",
    "status": "status",
    "metrics.train/loss": "train_loss",
    "metrics.validation/loss": "validation_loss",
    "metrics.validation/bits_per_byte": "bits_per_byte",
    "metrics.validation/best_bits_per_byte": "best_bits_per_byte",
    "metrics.speed/median_tokens_per_second": "tokens_per_second",
    "start_time": "started",
    "tags.corpus": "corpus",
    "tags.git.commit": "commit",
    "checkpoint": "checkpoint",
    "run_id": "run_id",
}


_VARYING = {"params.": "", "tags.hardware.": "hardware."}
"""Prefixes of the columns that are shown where they differ, and what stands for them in the table."""


def table(runs: pd.DataFrame, stage: str | None, sort: str, descending: bool = False) -> pd.DataFrame:
    """One row a run, with a column for each param and hardware tag that is not the same in all runs of a stage.

    Args:
        runs: what `mlflow.search_runs` gives.
        stage: only runs of this stage; None for all.
        sort: a column of the result; unknown ones are refused.
        descending: largest first; the newest come first in any case.

    Raises:
        SystemExit: there is no such column.
    """
    runs = _of_stages(runs)
    stages = runs.get("tags.stage", pd.Series(index=runs.index, dtype=str))
    if stage is not None:
        runs, stages = runs.loc[stages == stage], stages.loc[stages == stage]
    runs = runs.assign(checkpoint=_checkpoints(runs, stages))
    kept = runs.reindex(columns=list(_COLUMNS)).rename(columns=_COLUMNS)
    kept["commit"] = kept["commit"].astype("string").str[:8]
    for prefix, shown in _VARYING.items():
        for column in runs.columns[runs.columns.str.startswith(prefix)]:
            if any(part[column].nunique(dropna=True) > 1 for _, part in runs.groupby(stages)):
                name = shown + column.removeprefix(prefix)
                kept.insert(kept.columns.get_loc("train_loss"), name, runs[column])  # type: ignore[arg-type]
    if sort not in kept.columns:
        raise SystemExit(f"ERROR: --sort must name a column, got {sort!r}; use one of {', '.join(kept.columns)}")
    return kept.sort_values(sort, ascending=not (descending or sort == "started"), na_position="last").reset_index(
        drop=True
    )


def _of_stages(runs: pd.DataFrame) -> pd.DataFrame:
    """Without the runs of studies, which train nothing themselves."""
    return runs.loc[runs["tags.stage"] != SWEEP].dropna(axis="columns", how="all") if "tags.stage" in runs else runs


def _checkpoints(runs: pd.DataFrame, stages: "pd.Series[str]") -> "pd.Series[str]":
    """DVC's digest of each run's checkpoint, as its remote names it; empty where it has none."""
    digests = pd.Series("", index=runs.index)
    for stage in stages.dropna().unique():
        column = f"tags.dvc.out.checkpoints/{stage}"
        if column in runs:
            digests = digests.mask(stages == stage, runs[column].fillna("").str[:8])
    return digests


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _local(time: pd.Timestamp) -> str:
    """The local time, as in the training log."""
    return f"{time.to_pydatetime().astimezone():%Y-%m-%d %H:%M}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the runs that MLflow holds.")
    parser.add_argument("--stage", choices=("tokenize", "pretrain", "finetune"))
    parser.add_argument(
        "--sort", default="best_bits_per_byte", metavar="COLUMN", help="column to sort by (best_bits_per_byte)"
    )
    parser.add_argument("--descending", action="store_true", help="largest first")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table to this file")
    arguments = parser.parse_args()
    workspace = Workspace.find(Path.cwd())
    store = MlflowStore.of(workspace.root)
    try:
        experiment = load(workspace.directory / "params.yaml").tracking.experiment
    except ConfigError as error:
        raise SystemExit(f"ERROR: {error}") from None
    try:
        runs = within(_ANSWER_SECONDS, lambda: store.search_runs(experiment))
    except Exception as error:  # whatever a store or the way to it raises
        raise SystemExit(store.outage(error)) from None
    compared = table(runs, arguments.stage, arguments.sort, arguments.descending)
    if compared.empty:
        which = f"runs of {arguments.stage}" if arguments.stage else "runs"
        raise SystemExit(f"No {which} yet in experiment {experiment!r} of {store.shown}; `dvc repro` makes some")
    if arguments.csv:
        compared.to_csv(arguments.csv, index=False)
    with pd.option_context("display.width", None, "display.max_columns", None, "display.max_colwidth", 40):
        compared["started"] = [_local(time) for time in compared["started"]]
        print(compared.to_string(index=False, float_format=_short, na_rep=""))
    if not (repeated := repeats(runs, arguments.stage)).empty:
        print(f"\nMean and standard deviation over seeds:\n{text(repeated)}")


if __name__ == "__main__":
    main()
