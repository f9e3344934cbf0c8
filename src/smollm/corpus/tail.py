"""Holds out the end of a text whose documents are all on one side of the split."""

import os

import numpy as np

from smollm.corpus.token_writer import Side


def hold_out_tail(train: Side, validation: Side, fraction: float) -> None:
    """Move the last `fraction` of the tokens to `validation`; one of the two sides has no document."""
    if not train.documents:
        validation.tokens_path.replace(train.tokens_path)
        validation.offsets_path.replace(train.offsets_path)
        train.documents, train.bytes, train.tokens = validation.documents, validation.bytes, validation.tokens
    held_out = max(1, int(train.tokens * fraction))
    kept = train.tokens - held_out
    bytes_per_token = train.bytes / train.tokens
    # not by ndarray.tofile, which on a full disk raises an error of its own, or none
    validation.tokens_path.write_bytes(np.memmap(train.tokens_path, dtype=train.dtype, mode="r")[kept:].data)
    os.truncate(train.tokens_path, kept * np.dtype(train.dtype).itemsize)
    offsets = np.fromfile(train.offsets_path, np.uint64)
    train.offsets_path.write_bytes(offsets[offsets < kept].data)
    following = offsets[offsets > kept] - np.uint64(kept)
    validation.offsets_path.write_bytes(np.concatenate([np.zeros(1, np.uint64), following]).data)
    train.documents, validation.documents = int((offsets < kept).sum()), 1 + len(following)
    validation.tokens, validation.bytes = held_out, round(held_out * bytes_per_token)
    train.tokens, train.bytes = kept, train.bytes - validation.bytes
