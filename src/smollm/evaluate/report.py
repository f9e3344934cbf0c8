"""The stage's reports: a page in Markdown with its pictures, tables for DVC's charts, and the metrics."""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smollm.evaluate import memory
from smollm.evaluate.results import Results
from smollm.evaluate.tasks import STDERR
from smollm.evaluate.text import TEXTS
from smollm.stage.picture import draw
from smollm.stage.report import write_log, write_table
from smollm.state.files import write_atomically, write_json
from smollm.state.journal import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILES = (
    "report.md",
    "positions.svg",
    *(f"sources_{name}.svg" for name in TEXTS),
    "overlap.svg",
    "metrics.json",
    "positions.tsv",
    "sources.tsv",
    "samples.tsv",
    "log.txt",
)
"""What is written, and MLflow gets a copy of."""

_NOT_MLFLOWS = r"[^\w./: -]"
"""A character that MLflow does not allow in the name of a metric; some of lm-eval's have one."""

_SOURCES = 15
_SHOWN_SAMPLES = 3
_CHARACTERS = 600
"""Most characters of a text that the page shows."""


def write(directory: Path, workspace: Path, results: Results, records: list[Record]) -> dict[str, Any]:
    """Write all reports below `directory`, and return the metrics.

    Args:
        directory: ``reports/evaluate``.
        workspace: has the token files, which name the documents.
        results: what was measured.
        records: the whole journal.
    """
    metrics = results.metrics()
    write_json(directory / "metrics.json", metrics)
    write_log(directory / "log.txt", records)
    _write_tables(directory, results)
    draw(directory / "positions.svg", partial(_plot_positions, results=results))
    draw(directory / "overlap.svg", partial(_plot_overlaps, results=results))
    for name in TEXTS:
        draw(directory / f"sources_{name}.svg", partial(_plot_sources, results=results, name=name))
    write_atomically(directory / "report.md", _page(workspace, results, metrics))
    return metrics


def mlflow_metrics(results: Results) -> dict[str, float]:
    """The numbers that MLflow draws and compares, by its names."""
    metrics = results.metrics()
    numbers: dict[str, float] = {}
    for name in TEXTS:
        values = metrics[name]
        numbers |= {
            f"evaluate/{name}_bits_per_byte": values["bits_per_byte"],
            f"evaluate/{name}_longest_overlap_tokens": values["overlap"]["longest_tokens"],
            f"evaluate/{name}_median_overlap_tokens": values["overlap"]["median_tokens"],
        }
    if "code" in metrics:
        numbers["evaluate/code_accepted"] = metrics["code"]["accepted"]
    for task, values in results.tasks.items():
        numbers |= {re.sub(_NOT_MLFLOWS, "_", f"evaluate/{task}_{name}"): value for name, value in values.items()}
    return numbers


def _write_tables(directory: Path, results: Results) -> None:
    columns = {
        name: {row["last"]: row["bits_per_byte"] for row in results.held_out[name]["positions"]} for name in TEXTS
    }
    shared = sorted(set.intersection(*map(set, columns.values())))
    write_table(
        directory / "positions.tsv",
        [["position", *TEXTS], *([last, *(columns[name][last] for name in TEXTS)] for last in shared)],
    )
    keys = ("tokens", "bytes", "loss", "bits_per_byte")
    rows = [  # DVC's chart would add up the bars of one name
        [f"{name}: {row['source']}", *map(row.get, keys)] for name in TEXTS for row in results.held_out[name]["sources"]
    ]
    write_table(directory / "sources.tsv", [["source", *keys], *rows])
    table: list[list[Any]] = [["text", "document", "overlap_tokens", "held_out_overlap_tokens", "prompt", "sample"]]
    for name in TEXTS:
        for sample, written, there in zip(results.samples[name], *results.overlaps_of(name), strict=True):
            table.append(
                [name, sample["document"], written["tokens"], there["tokens"], sample["prompt"], sample["sample"]]
            )
    write_table(directory / "samples.tsv", table)


def _plot_positions(axes: "Axes", results: Results) -> None:
    for name in TEXTS:
        rows = results.held_out[name]["positions"]
        axes.plot([row["last"] for row in rows], [row["bits_per_byte"] for row in rows], "o-", label=name, markersize=3)
    axes.set(title="held-out text by position", xlabel="position in the context (tokens)", ylabel="bits per byte")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()


def _plot_sources(axes: "Axes", results: Results, name: str) -> None:
    rows = results.held_out[name]["sources"][:_SOURCES][::-1]
    axes.barh([_shortened(row["source"], 40) for row in rows], [row["bits_per_byte"] for row in rows])
    whole = results.held_out[name]["bits_per_byte"]
    axes.axvline(whole, linestyle=":", color="gray", linewidth=1, label=f"all: {whole:.3f}")
    axes.set(title=f"{name}'s held-out text by source", xlabel="bits per byte")
    axes.grid(alpha=0.3, axis="x")
    axes.legend()


def _plot_overlaps(axes: "Axes", results: Results) -> None:
    for number, name in enumerate(TEXTS):
        for rows, style, what in zip(results.overlaps_of(name), ("-", ":"), ("samples", "held-out text"), strict=True):
            lengths = np.sort([row["tokens"] for row in rows])
            shares = 1 - np.arange(len(lengths)) / len(lengths)
            axes.step(lengths, shares, style, where="pre", color=f"C{number}", label=f"{name}: {what}")
    axes.set(
        title="longest overlap with the training text",
        xlabel="tokens",
        ylabel="share of texts with at least this many",
        ylim=(0, 1.05),
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()


def _page(workspace: Path, results: Results, metrics: dict[str, Any]) -> str:
    parts = [
        "# Evaluation of models/finetune",
        f"{results.parameters:,} parameters; DVC's digest `{results.model}`. Held-out text is text that no stage was "
        "trained on.",
        _table(
            ["held-out text of", "bits per byte", "nats per token", "tokens", "bytes"],
            [
                [
                    name,
                    f"{metrics[name]['bits_per_byte']:.4f}",
                    f"{metrics[name]['loss']:.3f}",
                    f"{metrics[name]['tokens']:,}",
                    f"{metrics[name]['bytes']:,}",
                ]
                for name in TEXTS
            ],
        ),
        "## By position in the context",
        f"How much a longer context helps: bits per byte of the tokens at each position of windows of "
        f"{results.length:,} tokens.",
        "![bits per byte by position](positions.svg)",
        "## By source",
        *(part for name in TEXTS for part in _sources(results, name)),
        *_code(metrics),
        *_memory(workspace, results, metrics),
        *_tasks(results),
        *_samples(results),
    ]
    return "\n\n".join(parts) + "\n"


def _sources(results: Results, name: str) -> list[str]:
    rows = results.held_out[name]["sources"]
    more = f" The {_SOURCES} largest of {len(rows)} are shown; all are in sources.tsv." if len(rows) > _SOURCES else ""
    return [
        f"Text of {name}, the largest sources on top.{more}" if len(rows) > 1 else f"Text of {name}: one source.",
        *([f"![{name} by source](sources_{name}.svg)"] if len(rows) > 1 else []),
        _table(
            ["source", "bits per byte", "tokens", "bytes"],
            [
                [f"`{row['source']}`", f"{row['bits_per_byte']:.3f}", f"{row['tokens']:,}", f"{row['bytes']:,}"]
                for row in rows[:_SOURCES]
            ],
        ),
    ]


def _code(metrics: dict[str, Any]) -> list[str]:
    if "code" not in metrics:
        return []
    code = metrics["code"]
    return [
        "## Is it Python?",
        f"Python's own parser accepts {code['accepted']:.0%} of {code['samples']} samples that begin like a held-out "
        f"file, and {code['held_out_accepted']:.0%} of {code['held_out']} such files, cut off at the same length. A "
        "text may end too soon, but must not be wrong before its last line; one that does not get beyond its first "
        "comment or docstring is not counted.",
    ]


def _memory(workspace: Path, results: Results, metrics: dict[str, Any]) -> list[str]:
    rows = []
    for name in TEXTS:
        for key, what in (("overlap", "samples"), ("held_out_overlap", "held-out text")):
            values = metrics[name][key]
            cells = [f"{values[f'{kind}_{unit}']:,.0f}" for unit in _UNITS for kind in ("median", "p90", "longest")]
            rows.append([name, what, *cells])
    heading = [f"{kind}, {unit}" for unit in _UNITS for kind in ("median", "90th percentile", "longest")]
    number, longest = max(enumerate(results.overlaps[::2]), key=lambda item: item[1]["tokens"])
    continued = [sample for name in TEXTS for sample in results.samples[name]][number]["document"]
    known = memory.place(workspace, longest) if longest["tokens"] else "no document"
    return [
        "## Memorisation",
        f"The longest run of each sample (of {results.settings.sample_tokens} tokens) that is, word for word, in the "
        "training text of either stage; and the same of the held-out documents' own continuations. Samples that share "
        "much longer runs than held-out text does were memorised.",
        _table(["text", "of", *heading], rows),
        "![longest overlaps](overlap.svg)",
        f"The longest run in a sample, {longest['tokens']} tokens, is in `{known}`; the sample continues "
        f"`{continued}`:",
        _block(longest["text"]),
    ]


_UNITS = ("tokens", "characters")


def _tasks(results: Results) -> list[str]:
    if not results.tasks:
        return []
    rows = []
    for task, values in results.tasks.items():
        for name in values:
            if name != "examples" and not name.endswith(STDERR):
                cells = [f"{values[key]:.4f}" if key in values else "" for key in (name, name + STDERR)]
                rows.append([task, name, *cells, str(values.get("examples", ""))])
    return [
        "## Tasks",
        "Measured by lm-eval.",
        _table(["task", "metric", "value", "standard error", "examples"], rows),
    ]


def _samples(results: Results) -> list[str]:
    parts = ["## What it writes", "Beginnings of held-out documents, and, after `▶`, how the model goes on."]
    for name in TEXTS:
        for sample in results.samples[name][:_SHOWN_SAMPLES]:
            parts += [f"`{sample['document']}`", _block(f"{sample['prompt']}▶{sample['sample']}")]
    return parts


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _block(text: str) -> str:
    """A text as it is, between fences longer than any in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}\n{_shortened(text, _CHARACTERS)}\n{fence}"


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
