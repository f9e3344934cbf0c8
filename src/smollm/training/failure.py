"""The report on a step with a non-finite loss or gradient: its sequences one by one, with their text."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from smollm.device.hardware import Hardware
from smollm.model.llama import LlamaForCausalLM
from smollm.model.sharding import gradient_norm
from smollm.state.files import write_json
from smollm.state.tokens import TRAIN, documents_of, token_directory
from smollm.training.batches import Batches


def measure_sequences(model: LlamaForCausalLM, batches: Batches, step: int, hardware: Hardware) -> list[dict[str, Any]]:
    """For each sequence of the stage's step `step` alone: loss, gradient norm, stage and position of its text.

    Leaves no gradient behind. Not compiled: one sequence is another shape.
    """
    sequences: list[dict[str, Any]] = []
    inputs, targets = batches(step)
    with model.uncompiled():
        for row, (text, start) in enumerate(batches.places(step)):
            model.zero_grad(set_to_none=True)
            ids, following = (torch.tensor(array[row : row + 1]).to(hardware.device) for array in (inputs, targets))
            with hardware.autocast():
                loss = model.loss(ids, following)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = gradient_norm(model).item()
            place = {"text_of": text.stage, "first_token": start}
            sequences.append({**place, "loss": loss.item(), "gradient_norm": norm})
    model.zero_grad(set_to_none=True)
    return sequences


def write(path: Path, values: dict[str, Any], batches: Batches, workspace: Path, tokenizer: Tokenizer) -> None:
    """Write `values` as JSON, with the text and the source documents of each of its `sequences`.

    Args:
        path: of the JSON file.
        values: of the step; non-finite numbers are written as strings.
        batches: of the stage.
        workspace: has the token files that they are from.
        tokenizer: decodes them.
    """
    documents_by_stage = {stage: documents_of(token_directory(workspace, stage), TRAIN) for stage in batches.texts}
    sequences = []
    for sequence in values["sequences"]:
        windows = batches.texts[sequence["text_of"]]
        offsets, names = documents_by_stage[windows.stage]
        start, end = sequence["first_token"], sequence["first_token"] + windows.length
        first, last = np.searchsorted(offsets, [start, end % len(windows.tokens)], side="right") - 1
        # a window may wrap around from the stream's end to its beginning
        documents = names[first : last + 1] if end < len(windows.tokens) else names[first:] + names[: last + 1]
        text = tokenizer.decode(windows.at(start).tolist(), skip_special_tokens=False)
        sequences.append({**_plain(sequence), "documents": documents, "text": text})
    write_json(path, {**_plain(values), "sequences": sequences})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Non-finite numbers as strings: JSON cannot represent them."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
