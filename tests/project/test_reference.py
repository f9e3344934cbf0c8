"""The runs kept in docs/reference/: whole, free of machines, and quoted right in the docs.

A table that quotes a run has a line before it, `<!-- docs/reference/<run>/<stage> -->`, and steps in its first column.
"""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml
from support.structure import ROOT

REFERENCE = ROOT / "docs" / "reference"
RUNS = sorted(REFERENCE.iterdir())
STAGES = ("pretrain", "finetune")
REPORTS = {
    "loss.svg",
    "losses.tsv",
    "metrics.json",
    "run.json",
    "samples.tsv",
    "training_log.txt",
    "validation.tsv",
}
AT_LIBERTY = {"speed.tsv"}, {"environment.json"}
"""What else a stage's reports, and a run, may have."""
COLUMNS = {
    "training loss": ("losses.tsv", "train_loss"),
    "held-out loss": ("validation.tsv", "validation_loss"),
    "held-out bits per byte": ("validation.tsv", "bits_per_byte"),
    "pretrain's bits per byte": ("validation.tsv", "pretrain_bits_per_byte"),
}
"""What a table may quote, and from where."""
OTHERS = {"step", "the predecessor's loss"}
"""Columns that a kept run does not have."""
SPEEDS = {
    "seconds": "wall_seconds",
    "tokens/s": "tokens_per_second",
    "ms a step": "step_ms",
    "MFU": "mfu",
    "goodput": "goodput",
    "peak memory, GiB": "peak_memory_gib",
}
"""What a table of stages may quote of run.json."""
SAMPLE = re.compile(r"<!-- (docs/reference/\S+/samples.tsv) (\d+) -->\n```\n(.*?)\n```\n", re.S)
TABLE = re.compile(r"<!-- (docs/reference/\S+) -->\n((?:\|.*\n)+)")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def measured(file: Path, column: str) -> dict[str, float]:
    with file.open(encoding="utf-8", newline="") as lines:
        return {row["step"]: float(row[column]) for row in csv.DictReader(lines, delimiter="\t")}


def tables(text: str) -> list[tuple[str, list[dict[str, str]]]]:
    """The tables of a document that quote a run: the folder, and rows by column."""
    found = []
    for folder, table in TABLE.findall(text):
        names, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        assert set("".join(rule)) == {"-"}
        found.append((folder, [dict(zip(names, row, strict=True)) for row in rows]))
    return found


def faults(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    """The cells that differ from what the run measured, at the precision they show; `-` is: not measured."""
    if "stage" in rows[0]:
        return [fault for row in rows for fault in faults_of_speed(folder / row["stage"], row)]
    unknown = set(rows[0]) - set(COLUMNS) - OTHERS
    found = [f"{name}: no known column" for name in sorted(unknown)]
    for name in COLUMNS.keys() & rows[0].keys():
        values = measured(folder / COLUMNS[name][0], COLUMNS[name][1])
        for row in rows:
            value = values.get(row["step"])
            digits = len(row[name].partition(".")[2])
            right = "-" if value is None else f"{value:.{digits}f}"
            if row[name] != right:
                found.append(f"{name} at {row['step']}: {row[name]}, measured {right}")
    return found


def faults_of_speed(folder: Path, row: dict[str, str]) -> list[str]:
    values = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    shown = {name: value for name, value in row.items() if name != "stage"}
    right = {name: f"{values[SPEEDS[name]]:,.{len(shown[name].partition('.')[2])}f}" for name in shown}
    return [
        f"{row['stage']}, {name}: {shown[name]}, measured {right[name]}" for name in shown if shown[name] != right[name]
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_tables_show_what_the_kept_runs_measured(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    quoted = tables(text)
    samples = SAMPLE.findall(text)
    assert len(quoted) + len(samples) == text.count("<!-- docs/reference/"), "each such line has what it names below"
    for name, step, sample in samples:
        with (ROOT / name).open(encoding="utf-8", newline="") as lines:
            written = [
                row["prompt"] + row["text"] for row in csv.DictReader(lines, delimiter="\t") if row["step"] == step
            ]
        assert sample in written
    for folder, rows in quoted:
        assert not faults(ROOT / folder, rows), folder


def test_a_wrong_speed_is_found() -> None:
    row = {"stage": "pretrain", "tokens/s": "356,172", "ms a step": "184.1", "goodput": "0.932"}
    assert faults(REFERENCE / "smollm-135m", [row]) == ["pretrain, ms a step: 184.1, measured 184.0"]


def test_a_wrong_figure_is_found() -> None:
    document = (
        "<!-- docs/reference/shakespeare/pretrain -->\n"
        "| step | training loss | held-out loss | speed |\n|---|---|---|---|\n"
        "| 10 | 7.80 | 4.96 | 1 |\n| 250 | 3.81 | - | 1 |\n| 500 | 1.136 | 5.9 | 1 |\n| 501 | 1.1 | - | 1 |\n"
    )
    ((folder, rows),) = tables(document)
    assert sorted(faults(ROOT / folder, rows)) == [
        "held-out loss at 10: 4.96, measured -",
        "held-out loss at 250: -, measured 5",
        "speed: no known column",
        "training loss at 250: 3.81, measured 3.80",
        "training loss at 501: 1.1, measured -",
    ]


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_a_kept_run_is_whole_and_has_a_table(run: Path) -> None:
    assert {path.name for path in run.iterdir()} - AT_LIBERTY[1] == {"params.yaml", *STAGES}
    params = yaml.safe_load((run / "params.yaml").read_text(encoding="utf-8"))
    assert params["preset"] == run.name
    end = 0
    for stage in STAGES:
        folder = run / stage
        assert {path.name for path in folder.iterdir()} - AT_LIBERTY[0] == REPORTS
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        end += params[stage]["steps"]
        assert metrics["step"] == end
        for key, (file, column) in (
            ("train_loss", COLUMNS["training loss"]),
            ("validation_loss", COLUMNS["held-out loss"]),
            ("bits_per_byte", COLUMNS["held-out bits per byte"]),
        ):
            assert metrics[key] == measured(folder / file, column)[str(end)]
    quoted = {folder for document in DOCUMENTS for folder, _ in tables(document.read_text(encoding="utf-8"))}
    assert f"docs/reference/{run.name}/pretrain" in quoted


def test_what_the_docs_name_of_the_kept_runs_is_there() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for name in re.findall(r"docs/reference/[\w./-]*\w", text):
            assert (ROOT / name).exists(), f"{document.name}: {name}"
        for target in re.findall(r"\]\((reference/[^)]+)\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_a_kept_run_names_no_machine(run: Path) -> None:
    place = re.compile(r"(?<![\w.:/<])/(?:home|root|tmp|usr|opt|mnt|work|var|Users)\b|sqlite:////|\w+://[^\s/]*@")
    for path in (path for path in run.rglob("*") if path.is_file()):
        found = place.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found}"
