"""A compact set of digests, for hundreds of millions of them."""

from collections.abc import Iterable

import numpy as np

_RECENT = 500_000
"""At least this many digests are collected before they are merged into the sorted ones."""


class Digests:
    """A set of digests of equal length; keeps the first `width` bytes of each."""

    def __init__(self, width: int = 16) -> None:
        self._width = width
        self._sorted = np.empty(0, f"S{width}")
        self._recent: set[bytes] = set()

    def add(self, digest: bytes) -> None:
        self._recent.add(self._short(digest))
        if len(self._recent) >= max(_RECENT, len(self._sorted) // 32):
            recent = np.array(sorted(self._recent), self._sorted.dtype)
            self._sorted = np.concatenate([self._sorted, recent])
            self._sorted.sort(kind="stable")  # merges the two, which are sorted, in linear time
            self._recent.clear()

    def __contains__(self, digest: bytes) -> bool:
        return self.has_any([digest])

    def has_any(self, digests: Iterable[bytes]) -> bool:
        """Whether at least one of some digests is in the set."""
        short = [self._short(digest) for digest in digests]
        if not self._recent.isdisjoint(short):
            return True
        if not len(self._sorted) or not short:
            return False
        wanted = np.array(short, self._sorted.dtype)
        places = np.searchsorted(self._sorted, wanted)
        return bool((self._sorted[np.minimum(places, len(self._sorted) - 1)] == wanted).any())

    def _short(self, digest: bytes) -> bytes:
        return digest[: self._width].rstrip(b"\0")  # as numpy's strings do
