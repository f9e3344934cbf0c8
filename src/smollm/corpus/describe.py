"""Describe a corpus from its token files: counts, sources, lengths and example documents.

``python3 -m smollm.corpus.describe [--seed N] [--documents N]`` (`make data`)
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smollm.errors import CorpusError
from smollm.stage.picture import draw
from smollm.state.tokens import (
    SPLITS,
    STAGES,
    documents_table,
    offsets_path,
    open_split,
    open_tokenizer,
    read_manifest,
    source_of,
    token_directory,
    tokenizer_path,
)
from smollm.tracking.console import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SOURCES = 15
_SHOWN = 400


def describe(workspace: Path, seed: int = 0, documents: int = 2) -> str:
    """A readable report: counts, sources and a few documents of each stage's text.

    Args:
        workspace: has the tokenizer and the token files.
        seed: decides which documents are shown.
        documents: how many are shown of each split.

    Raises:
        CorpusError: there are no token files.
    """
    directories = {stage: token_directory(workspace, stage) for stage in STAGES}
    parts = ["Text by stage and split", _text(overview(directories))]
    parts += ["Left out", _text(left_out(directories))]
    for stage, directory in directories.items():
        parts += [f"Largest sources of {stage}", _text(sources(directory))]
    for stage, directory in directories.items():
        for split in SPLITS:
            for place, text in examples(workspace, directory, split, seed, documents):
                body = text.replace("\n", "\n    ")
                parts.append(f"A document of {stage}/{split}, decoded from token {place:,} on\n\n    {body}")
    return "\n\n".join(parts) + "\n"


def overview(directories: dict[str, Path]) -> pd.DataFrame:
    """Counts of documents, bytes and tokens, and the lengths of documents: a row for each stage and split."""
    rows: list[dict[str, Any]] = []
    for stage, directory in directories.items():
        manifest = read_manifest(directory)
        for split in SPLITS:
            counts, lengths = manifest[split], document_lengths(directory, split)
            rows.append(
                {
                    "stage": stage,
                    "split": split,
                    "documents": counts["documents"],
                    "megabytes": counts["bytes"] / 1e6,
                    "tokens": counts["tokens"],
                    "bytes_per_token": counts["bytes_per_token"],
                    "median_tokens": int(np.median(lengths)),
                    "longest_tokens": int(lengths.max()),
                }
            )
    return pd.DataFrame(rows)


def left_out(directories: dict[str, Path]) -> pd.DataFrame:
    """How many documents were left out, by reason, and which limit ended the reading: a row for each stage."""
    names = {
        "duplicates": "duplicates_removed",
        "blank": "blank_left_out",
        "null": "null_left_out",
        "not_utf8": "not_utf8_left_out",
    }
    rows: list[dict[str, Any]] = []
    for stage, directory in directories.items():
        manifest = read_manifest(directory)
        counts = {name: manifest[key] for name, key in names.items()}
        near = manifest.get("near_duplicates") or {"removed": 0}
        rows.append(
            {"stage": stage, "near_duplicates": near["removed"], **counts, "ended_by": manifest["ended_by"] or "-"}
        )
    return pd.DataFrame(rows)


def sources(directory: Path) -> pd.DataFrame:
    """The packages, files or datasets that gave most of a stage's text, with their share of its tokens."""
    kind = str(read_manifest(directory)["source"])
    totals = pd.DataFrame({"source": [], "documents": [], "bytes": [], "tokens": []})
    for table in documents_table(directory):
        table = table.assign(source=[source_of(key, kind) for key in table["key"]], documents=1)
        joined = pd.concat([totals, table]) if len(totals) else table
        totals = joined.groupby("source", as_index=False)[["documents", "bytes", "tokens"]].sum()
    total = totals.sort_values(["tokens", "source"], ascending=[False, True], ignore_index=True)
    total["share"] = (100 * total["tokens"] / total["tokens"].sum()).map("{:.1f} %".format)
    shown, rest = total.head(_SOURCES), len(total) - _SOURCES
    if rest > 0:
        others = total.iloc[_SOURCES:][["documents", "bytes", "tokens"]].sum()
        share = f"{100 * others['tokens'] / total['tokens'].sum():.1f} %"
        last = pd.DataFrame([{"source": f"{rest:,} others", **others, "share": share}])
        shown = pd.concat([shown, last], ignore_index=True)
    return shown


def document_lengths(directory: Path, split: str) -> NDArray[np.int64]:
    """The number of tokens of each document of a split, end-of-text included."""
    offsets = np.fromfile(offsets_path(directory, split), np.uint64).astype(np.int64)
    return np.diff(offsets, append=read_manifest(directory)[split]["tokens"])


def examples(workspace: Path, directory: Path, split: str, seed: int, count: int) -> Iterator[tuple[int, str]]:
    """Yield a few documents of a split: the index of the first token, and the beginning decoded from the tokens."""
    tokenizer = open_tokenizer(tokenizer_path(workspace))
    tokens = open_split(directory, split)
    offsets = np.fromfile(offsets_path(directory, split), np.uint64).astype(np.int64)
    chosen = np.random.default_rng(seed).choice(len(offsets), min(count, len(offsets)), replace=False)
    for number in sorted(chosen.tolist()):
        start = int(offsets[number])
        end = int(offsets[number + 1]) if number + 1 < len(offsets) else len(tokens)
        text = tokenizer.decode(tokens[start : min(end, start + _SHOWN)].tolist(), skip_special_tokens=False)
        yield start, text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def draw_lengths(path: Path, directories: dict[str, Path]) -> None:
    """Write a histogram of the documents' lengths, as SVG; the same text gives the same bytes."""

    def plot(axes: "Axes") -> None:
        for stage, directory in directories.items():
            lengths = np.concatenate([document_lengths(directory, split) for split in SPLITS])
            edges = 2 ** np.arange(0, np.log2(lengths.max()) + 0.5, 0.5)
            axes.hist(lengths, edges.tolist(), histtype="step", label=f"{stage}: {counted(len(lengths), 'document')}")
        axes.set(title="length of documents", xlabel="tokens", ylabel="documents", xscale="log")
        axes.grid(alpha=0.3)
        axes.legend()

    draw(path, plot)


def _text(table: pd.DataFrame) -> str:
    numbers = {column: "{:,}".format for column in table.columns if pd.api.types.is_integer_dtype(table[column])}
    return table.to_string(index=False, formatters=numbers, float_format="{:,.2f}".format)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="choice of documents")
    parser.add_argument("--documents", type=int, default=2, help="documents shown of each split")
    arguments = parser.parse_args()
    try:
        print(describe(Path(), arguments.seed, arguments.documents), end="")
    except CorpusError as error:
        raise SystemExit(f"ERROR: {error}") from None


if __name__ == "__main__":
    main()
