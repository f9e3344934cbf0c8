"""Validation loss and bits per byte on held-out text."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from smollm.model.llama import IGNORED, LlamaForCausalLM
from smollm.training.assembly import Assembly
from smollm.training.batches import Ids


@dataclass(frozen=True)
class Validation:
    """The result of one validation."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """The loss per UTF-8 byte of text: comparable across tokenizers on the same text."""
    tokens_per_second: float
    """Of this process, on its part."""


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """Convert a mean loss in nats over `tokens` tokens that stand for `text_bytes` bytes."""
    return loss * tokens / (math.log(2) * text_bytes)


class Evaluator:
    """Measures a model on fixed windows of held-out tokens."""

    def __init__(self, windows: Ids, token_bytes: NDArray[np.int64], assembly: Assembly) -> None:
        """
        Args:
            windows: (N, T+1) token ids, which the processes of the assembly's group share.
            token_bytes: (V,) bytes of text that each id stands for.
            assembly: as many windows as its micro-batch are computed at once, so that a compiled model sees one
                shape.
        """
        self.hardware, self.group = assembly.hardware, assembly.group
        # kept on the device: a copy from pageable host memory would wait for all of the GPU's queued work
        self.windows, self.batch = torch.from_numpy(windows).to(self.hardware.device), assembly.micro_batch
        self.text_bytes = max(1, int(token_bytes[windows[:, 1:]].sum()))

    def __call__(self, model: LlamaForCausalLM) -> Validation:
        """Measure the mean loss over all targets. End-of-text targets count too, but as zero bytes."""
        device = self.hardware.device
        total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        began = time.perf_counter()
        rounds = range(0, len(self.windows), self.group.size * self.batch)
        for first in rounds:
            # in the last round none may be left for some ranks, which still take part in gathering sharded weights
            start = first + self.group.rank * self.batch
            ids = self.windows[start : start + self.batch]
            inputs = torch.zeros(self.batch, ids.shape[1] - 1, dtype=ids.dtype, device=device)
            targets = torch.full_like(inputs, IGNORED)
            inputs[: len(ids)], targets[: len(ids)] = ids[:, :-1], ids[:, 1:]
            # under no_grad torch.compile would compile again: its training graph serves here too
            with torch.set_grad_enabled(model.execution.kernels is None), self.hardware.autocast():
                loss = model.loss(inputs, targets).detach()
            if len(ids):
                total += loss * ids[:, 1:].numel()
        self.hardware.synchronize()
        speed = len(rounds) * self.batch * self.windows[0, 1:].numel() / (time.perf_counter() - began)
        tokens = self.windows[:, 1:].numel()
        mean = float(self.group.sum(total)) / tokens
        return Validation(mean, bits_per_byte(mean, tokens, self.text_bytes), speed)
