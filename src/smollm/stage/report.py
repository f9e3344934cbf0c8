"""A finished stage's reports, written from its journal: tables, curves, samples and the log.

Losses and samples are the same bit for bit in every run of the same stage on the same CPU. Speed
and time are not, and have files of their own.
"""

import csv
import datetime
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm.stage.picture import draw
from smollm.state.files import write_atomically, write_json
from smollm.state.journal import Kind, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = {
    "losses.tsv": (Kind.STEP, ("train_loss", "gradient_norm", "learning_rate")),
    "validation.tsv": (Kind.VALIDATION, ("loss", "bits_per_byte", "pretrain_loss", "pretrain_bits_per_byte")),
    "speed.tsv": (Kind.SPEED, ("tokens_per_second", "step_ms", "mfu", "goodput", "peak_memory_gib")),
}
_HEADINGS = {"loss": "validation_loss"}


def write_training(directory: Path, title: str, records: list[Record], metrics: dict[str, Any]) -> None:
    """Write a training stage's reports below `directory`.

    Args:
        directory: ``reports/<stage>``.
        title: of the loss curve.
        records: the whole journal.
        metrics: from `training_metrics`, and others that are the same in every run.
    """
    for name, (kind, columns) in _COLUMNS.items():
        rows: list[tuple[Any, ...]] = [(r.step, *(r.values.get(c) for c in columns)) for r in records if r.kind == kind]
        headings = [_HEADINGS.get(column, column) for column in columns]
        # a column that is unknown here (MFU on a CPU) is left out: DVC's plots take no blanks
        kept = [0, *(i for i in range(1, len(columns) + 1) if any(row[i] is not None for row in rows))]
        table = [["step", *headings], *(list(row) for row in rows)]
        write_table(directory / name, [[row[i] for i in kept] for row in table])
    samples = [
        (record.step, prompt, text)
        for record in records
        if record.kind == Kind.SAMPLE
        for prompt, text in zip(record.values["prompts"], record.values["texts"], strict=True)
    ]
    write_table(directory / "samples.tsv", [["step", "prompt", "text"], *map(list, samples)])
    write_json(directory / "metrics.json", metrics)
    write_log(directory / "training_log.txt", records)
    _draw_losses(directory / "loss.svg", title, records, metrics["best_step"])


def training_metrics(records: list[Record], best_step: int, exported_step: int) -> dict[str, Any]:
    """First, last, best and exported values of a training stage.

    Args:
        records: the whole journal.
        best_step, exported_step: step of the best validation, and of the state that becomes the model.
    """
    steps = [r for r in records if r.kind == Kind.STEP]
    validations = [r for r in records if r.kind == Kind.VALIDATION]
    first, last = validations[0].values, validations[-1].values
    bits_per_byte = {r.step: r.values["bits_per_byte"] for r in validations}
    pretrain_values = {
        "pretrain_bits_per_byte": last.get("pretrain_bits_per_byte"),
        "initial_pretrain_bits_per_byte": first.get("pretrain_bits_per_byte"),
    }
    return {
        "step": steps[-1].step,
        "initial_step": validations[0].step,
        "best_step": best_step,
        "exported_step": exported_step,
        "first_train_loss": steps[0].values["train_loss"],
        "train_loss": steps[-1].values["train_loss"],
        "validation_loss": last["loss"],
        "bits_per_byte": last["bits_per_byte"],
        "best_bits_per_byte": bits_per_byte[best_step],
        "exported_bits_per_byte": bits_per_byte[exported_step],
        "initial_bits_per_byte": first["bits_per_byte"],
        **{name: value for name, value in pretrain_values.items() if value is not None},
        "skipped_steps": sum(r.kind == Kind.SKIP for r in records),
    }


def speed_metrics(records: list[Record]) -> dict[str, float]:
    """Median speed of the stage's steps, and its goodput."""
    speeds = [r.values for r in records if r.kind == Kind.SPEED]
    ordered = sorted(speeds, key=lambda values: float(values["tokens_per_second"]))
    middle = ordered[len(ordered) // 2]
    chosen = {
        "tokens_per_second": middle["tokens_per_second"],
        "step_ms": middle["step_ms"],
        "mfu": middle["mfu"],
        "goodput": speeds[-1]["goodput"],
        "peak_memory_gib": max(values["peak_memory_gib"] for values in speeds),
    }
    return {name: value for name, value in chosen.items() if value is not None}


def write_log(path: Path, records: list[Record]) -> None:
    """Write the journal as readable lines with local times."""
    write_atomically(path, "".join(f"{_time(record)}  {_line(record)}\n" for record in records))


def _line(record: Record) -> str:
    values = record.values
    if record.kind == Kind.EVENT:
        return str(values["message"])
    if record.kind == Kind.COMPLETE:
        return "complete"
    if record.kind == Kind.SAMPLE:
        texts = zip(values["prompts"], values["texts"], strict=True)
        body = "\n".join("    " + (prompt + text).replace("\n", "\n    ") for prompt, text in texts)
        return f"step {record.step}  samples\n{body}"
    shown = "  ".join(f"{name} {_short(value)}" for name, value in values.items() if value is not None)
    return f"step {record.step}  {record.kind}  {shown}"


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _time(record: Record) -> str:
    return datetime.datetime.fromtimestamp(record.time).astimezone().isoformat(sep=" ", timespec="seconds")


def write_table(path: Path, rows: list[list[Any]]) -> None:
    """Write rows, the heading first, as a TSV."""
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue())


def _draw_losses(path: Path, title: str, records: list[Record], best_step: int) -> None:
    def plot(axes: "Axes") -> None:
        for kind, name, style in ((Kind.STEP, "train_loss", "-"), (Kind.VALIDATION, "loss", "o-")):
            points = [(r.step, r.values[name]) for r in records if r.kind == kind]
            label = "training" if kind == Kind.STEP else "validation"
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=3)
        if best_step != max(record.step for record in records):
            axes.axvline(best_step, linestyle=":", color="gray", linewidth=1, label=f"best, step {best_step}")
        axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
        axes.grid(alpha=0.3)
        axes.legend()

    draw(path, plot)
