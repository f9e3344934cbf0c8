"""Seeds: every use of random numbers has an RNG of its own, seeded by its purpose.

Nothing draws from a global RNG while training, so no checkpoint needs to hold the state of one: weights depend on the
seed; a batch, its dropout masks and a sample on (seed, stage, step). The global RNGs that libraries might use are
seeded all the same.
"""

import hashlib
import random

import numpy as np
import torch


def key(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, derived from `seed`."""
    text = "\0".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(key(seed, "numpy") % 2**32)
    torch.manual_seed(seed)
