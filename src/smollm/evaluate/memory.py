"""What the samples share, word for word, with the training text; and, to compare, what held-out text shares with it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from smollm.evaluate.overlap import Items, longest_overlaps
from smollm.evaluate.text import TEXTS, bytes_of_tokens, training_document, training_pieces
from smollm.state.tokens import vocabulary_size

SAMPLE, REFERENCE = "sample", "reference"
"""What is compared: the model's continuations, and the documents' own."""


def compare(
    workspace: Path, name: str, texts: list[str], tokenizer: Tokenizer, on_progress: Callable[[int], object]
) -> list[dict[str, Any]]:
    """The longest run of each of `texts` in the training text of the stage `name`, in tokens and in bytes.

    Args:
        workspace: has the token files.
        name: of the stage.
        texts: those to compare.
        tokenizer: that of the token files.
        on_progress: called with the tokens that were read; each is read twice.
    """

    def tokens() -> Iterator[Items]:
        for piece in training_pieces(workspace, name):
            yield piece
            on_progress(len(piece))

    token_texts = bytes_of_tokens(tokenizer)

    def text_bytes() -> Iterator[Items]:
        for piece in tokens():
            yield np.frombuffer(b"".join(map(token_texts.__getitem__, piece.tolist())), np.uint8)

    encoded: list[Items] = [np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64) for text in texts]
    by_token = longest_overlaps(encoded, tokens(), vocabulary_size(tokenizer))
    by_byte = longest_overlaps([np.frombuffer(text.encode(), np.uint8) for text in texts], text_bytes(), 256)
    return [
        {
            "tokens": one.length,
            "text": tokenizer.decode(ids[one.start : one.start + one.length].tolist()),
            "found": one.found,
            "bytes": other.length,
            "start": other.start,
        }
        for ids, one, other in zip(encoded, by_token, by_byte, strict=True)
    ]


def merged(texts: list[str], found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The longest run of each of `texts` in all training text, from what `compare` returned for each stage's.

    Returns:
        Its tokens, their text, and where they are found; and the characters of the longest run of bytes.
    """
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        stage = max(TEXTS, key=lambda name: found[name][number]["tokens"])
        longest = found[stage][number]
        run = max((found[name][number] for name in TEXTS), key=lambda one: one["bytes"])
        shared = text.encode()[run["start"] : run["start"] + run["bytes"]].decode(errors="ignore")
        row = {key: longest[key] for key in ("tokens", "text", "found")}
        rows.append({**row, "stage": stage, "characters": len(shared)})
    return rows


def place(workspace: Path, row: dict[str, Any]) -> str:
    """The training document that has the run of a row of `merged`."""
    return training_document(workspace, row["stage"], row["found"])


def statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median, 90th percentile and longest of the runs, in tokens and characters."""
    result: dict[str, float] = {}
    for unit in ("tokens", "characters"):
        lengths = [row[unit] for row in rows]
        result |= {
            f"median_{unit}": float(np.median(lengths)),
            f"p90_{unit}": round(float(np.percentile(lengths, 90)), 1),
            f"longest_{unit}": int(max(lengths)),
        }
    return result
