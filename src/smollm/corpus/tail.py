"""Holds out the end of a text whose documents are too few or too unequal in length to be split one by one."""

import os
import shutil

import numpy as np

from smollm.corpus.token_writer import SplitWriter


def hold_out_tail(train: SplitWriter, validation: SplitWriter, fraction: float) -> None:
    """Append `validation` to `train`, then move the last `fraction` of all tokens to `validation`.

    If that cuts a document, its beginning is in `train` and its end in `validation`.
    """
    _join(train, validation)
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


def _join(train: SplitWriter, validation: SplitWriter) -> None:
    """Append the documents of `validation` to those of `train`."""
    with train.tokens_path.open("ab") as joined, validation.tokens_path.open("rb") as appended:
        shutil.copyfileobj(appended, joined, 1 << 20)
    with train.offsets_path.open("ab") as joined:
        joined.write((np.fromfile(validation.offsets_path, np.uint64) + np.uint64(train.tokens)).tobytes())
    train.documents += validation.documents
    train.bytes += validation.bytes
    train.tokens += validation.tokens
