"""The table of a study's trials, and its result in a line."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from smollm.sweep.search import Outcome, Row
from smollm.sweep.study_file import Study, Value
from smollm.tracking.console import counted, shortened

_REASON_CHARACTERS = 80


def best(rows: Iterable[Row]) -> Row | None:
    """The complete trial with the fewest bits per byte, the first of equal ones."""
    complete = [row for row in rows if row.outcome is Outcome.COMPLETE and row.bits_per_byte is not None]
    return min(complete, key=lambda row: (row.bits_per_byte, row.number), default=None)


def short(value: Value) -> str:
    """A value as people compare it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def frame(name: str, rows: Iterable[Row]) -> pd.DataFrame:
    """A row a trial, the best first: complete ones, then those that were stopped, each by bits per byte.

    Args:
        name: of the study.
        rows: its trials.
    """
    order = list(Outcome)
    ordered = sorted(rows, key=lambda row: (order.index(row.outcome), row.bits_per_byte or float("inf"), row.number))
    return pd.DataFrame(
        [
            {
                "trial": trial_name(name, row.number),
                "outcome": row.outcome.value,
                **row.values,
                "bits_per_byte": row.bits_per_byte,
                "step": row.step,
                "reason": row.reason,
            }
            for row in ordered
        ]
    ).dropna(axis="columns", how="all")


def trial_name(study: str, number: int) -> str:
    """DVC's name of a trial's experiment."""
    return f"{study}-{number}"


def ending(study: Study, rows: list[Row], row: Row) -> str:
    """The line on a trial that has just ended, and how far the study is."""
    result = "" if row.bits_per_byte is None else f", {row.bits_per_byte:.4f} bits per byte"
    result += "" if row.outcome is Outcome.COMPLETE or row.step is None else f" at step {row.step}"
    result += "" if row.reason is None else f" ({row.reason})"
    done = sum(one.outcome not in (Outcome.RUNNING, Outcome.FAILED) for one in rows)
    winner = best(rows)
    leader = (
        "" if winner is None else f", the best {winner.bits_per_byte:.4f} of {trial_name(study.name, winner.number)}"
    )
    head = f"{trial_name(study.name, row.number)} {row.outcome.value}{result}"
    return f"{head}; {done} of {counted(study.plan.trials, 'trial')} done{leader}"


def text(name: str, rows: Iterable[Row]) -> str:
    """The table as text, and below it the best trial and how to have it."""
    rows = list(rows)
    if not rows:
        return f"{name}: no trials yet"
    table = frame(name, rows)
    for column in table.columns:
        decimals = column == "bits_per_byte"
        table[column] = ["" if pd.isna(v) else f"{v:.4f}" if decimals else _cell(v) for v in table[column]]
    lines = [str(table.to_string(index=False))]
    winner = best(rows)
    if winner is not None:
        experiment = trial_name(name, winner.number)
        lines.append(
            f"\n{name}: {experiment} is best, {winner.bits_per_byte:.4f} bits per byte; "
            f"`dvc exp apply {experiment}` brings it into the workspace"
        )
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return shortened(str(value), _REASON_CHARACTERS)


def write(path: Path, name: str, rows: Iterable[Row]) -> None:
    """Write the table as CSV."""
    frame(name, rows).to_csv(path, index=False)
