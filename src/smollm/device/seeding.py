"""Random state: every use of chance has a generator of its own, keyed by what it is for.

Nothing draws from a global generator while training, so there is no hidden position in a stream
of random numbers to save: weights depend on the seed, a batch on (seed, stage, step), a sample on
(seed, stage, step). What libraries might draw from is seeded all the same.
"""

import hashlib
import random

import numpy as np
import torch


def key(seed: int, *purpose: str | int) -> int:
    """A 63-bit number that belongs to `seed` and this purpose alone."""
    text = "\0".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(key(seed, "numpy") % 2**32)
    torch.manual_seed(seed)
