"""Bits per byte of held-out text: as a whole, by source, and by position in the context.

Legend: B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from smollm.device.hardware import Hardware
from smollm.evaluate.text import HeldOutText
from smollm.model.llama import LlamaForCausalLM

_LOGITS = 2**27
"""Numbers that the logits of a batch may have: half a gigabyte in float32."""


def measure(
    model: LlamaForCausalLM,
    text: HeldOutText,
    token_bytes: NDArray[np.int64],
    length: int,
    most: int,
    hardware: Hardware,
    on_progress: Callable[[int, int], object],
) -> dict[str, Any]:
    """Predict every token of windows spread over `text`.

    Args:
        model: on the hardware's device.
        text: the held-out text.
        token_bytes: (V,) bytes of text that each id stands for.
        length: T, of a window.
        most: at most this many tokens in all.
        hardware: device and precision.
        on_progress: called with the windows that are done since the last call, and the number of all.

    Returns:
        Counts, loss in nats per token, bits per byte, and the same in lists, by `sources` and `positions`.

    Raises:
        CorpusError: the text is shorter than a window.
    """
    starts = text.windows(length, most)
    sources, source_of = text.sources()
    nats, size = np.zeros(length), np.zeros(length)  # by position
    source_sums = np.zeros((3, len(sources)))  # nats, bytes, tokens
    batch = max(1, _LOGITS // (length * model.config.vocab_size))
    for first in range(0, len(starts), batch):
        begins = starts[first : first + batch]
        places = begins[:, None] + np.arange(length + 1)
        ids = text.tokens[places].astype(np.int64)
        losses = _losses(model, torch.from_numpy(ids).to(hardware.device), hardware).double().cpu().numpy()
        sizes = token_bytes[ids[:, 1:]]
        nats += losses.sum(0)
        size += sizes.sum(0)
        documents = np.searchsorted(text.offsets, places[:, 1:].ravel(), side="right") - 1
        for row, values in enumerate((losses, sizes, np.ones_like(losses))):
            source_sums[row] += np.bincount(source_of[documents], values.ravel(), len(sources))
        on_progress(len(begins), len(starts))
    by_source = [
        {"source": name, "tokens": int(count), **_result(total, count, bytes_)}
        for name, total, bytes_, count in zip(sources, *source_sums.tolist(), strict=True)
        if bytes_
    ]
    return {
        "tokens": len(starts) * length,
        "windows": len(starts),
        **_result(nats.sum(), len(starts) * length, size.sum()),
        "sources": sorted(by_source, key=lambda row: (-row["bytes"], row["source"])),
        "positions": [
            {"first": low + 1, "last": high, **_result(nats[low:high].sum(), len(starts) * (high - low), total)}
            for low, high in _bins(length)
            if (total := size[low:high].sum())
        ],
    }


@torch.no_grad()
def _losses(model: LlamaForCausalLM, ids: Tensor, hardware: Hardware) -> Tensor:
    """Nats of each of `ids` (B, T+1) but the first, (B, T) float32."""
    with hardware.autocast():
        logits = model(ids[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )


def _bins(length: int) -> list[tuple[int, int]]:
    """Positions 1, 2, 3-4, 5-8, ... up to `length`, as slices."""
    edges = [0, *(2**n for n in range(length.bit_length()) if 2**n < length), length]
    return list(pairwise(edges))


def _result(nats: float, tokens: float, size: float) -> dict[str, Any]:
    return {"bytes": int(size), "loss": nats / tokens, "bits_per_byte": nats / (math.log(2) * size)}
