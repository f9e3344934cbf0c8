"""The longest run of each of some short texts that occurs, unchanged, anywhere in a long one.

Exact, in one pass over the long text, which is read in pieces. A run is looked for by a hash of its items, and a run
that is found is compared item by item. The hash of any run is a difference of two prefix sums (Rabin and Karp, 1987),
so that all runs of one length take a few array operations; and since only a run longer than the best so far is of
interest, nearly all positions drop out at the first of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.integer]
Hashes = NDArray[np.uint64]

_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that it has an inverse modulo 2^64."""

_FILTER_BITS = 22
"""A hash's highest bits, by which most positions are ruled out without a search."""

FIRST_PIECE, LARGEST_PIECE = 1 << 12, 1 << 21
"""Items of the pieces that `pieces` cuts: the first ones are small, since the runs found there rule out most others."""


@dataclass
class Overlap:
    """The longest run of one short text."""

    length: int = 0
    start: int = 0
    """Where it begins in the short text."""
    found: int = -1
    """Where it begins in the long text; -1: no item occurs there."""


def longest_overlaps(queries: list[Items], text: Iterable[Items], items: int) -> list[Overlap]:
    """The longest run of each of `queries` in `text`.

    Args:
        queries: short texts, 1-D each.
        text: the long one, in pieces of any length that follow each other.
        items: one more than the largest item.
    """
    search = _Search(queries, items)
    longest = max((len(query) for query in queries), default=0)
    kept: Items = np.empty(0, np.int64)
    position = 0
    for piece in text:
        window = np.concatenate([kept, piece]) if len(kept) else piece
        search.look_in(window, position - len(kept))
        position += len(piece)
        kept = window[max(0, len(window) - longest + 1) :]  # a run may go on in the next piece
    return search.overlaps


def pieces(length: int) -> Iterable[slice]:
    """Cut a text of `length` items into pieces that grow."""
    start, size = 0, FIRST_PIECE
    while start < length:
        yield slice(start, min(length, start + size))
        start, size = start + size, min(LARGEST_PIECE, 2 * size)


class _Hasher:
    """Hashes of all runs of a sequence."""

    def __init__(self, sequence: Items, table: Hashes, powers: Hashes, inverses: Hashes) -> None:
        terms = table[sequence] * powers[: len(sequence)]
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        self._inverses = inverses

    def all(self, length: int) -> Hashes:
        """The hash of the run of this length at each position."""
        count = max(0, len(self._sums) - length)
        return (self._sums[length:] - self._sums[:count]) * self._inverses[:count]

    def at(self, starts: NDArray[np.int64], length: int) -> Hashes:
        return (self._sums[starts + length] - self._sums[starts]) * self._inverses[starts]


class _Search:
    """The queries, with the longest run of each so far."""

    def __init__(self, queries: list[Items], items: int) -> None:
        self.queries = queries
        self.overlaps = [Overlap() for _ in queries]
        self._table = np.random.default_rng(0).integers(2**64, size=items, dtype=np.uint64)
        self._powers = self._inverses = np.empty(0, np.uint64)
        self._extend_powers(max((len(query) for query in queries), default=0) + FIRST_PIECE)
        self._hashers = [self._hasher(query) for query in queries]

    def look_in(self, window: Items, offset: int) -> None:
        """Find longer runs in a part of the text that begins at `offset`."""
        unfinished = [n for n, query in enumerate(self.queries) if self.overlaps[n].length < len(query)]
        if not unfinished:
            return
        self._extend_powers(len(window))
        text = self._hasher(window)
        starts: NDArray[np.int64] | None = None
        for length in sorted({self.overlaps[n].length + 1 for n in unfinished}):
            # where a longer run of any query begins, a run of this length begins too
            longer = [n for n in unfinished if self.overlaps[n].length + 1 >= length]
            keys = np.unique(np.concatenate([self._hashers[n].all(length) for n in longer]))
            if starts is None:
                starts = _members(text.all(length), keys)
            else:
                starts = starts[starts + length <= len(window)]
                starts = starts[_members(text.at(starts, length), keys)]
            if not len(starts):
                return
            hashes = text.at(starts, length)
            for n in longer:
                if self.overlaps[n].length + 1 == length:
                    mine = starts[_members(hashes, np.unique(self._hashers[n].all(length)))]
                    if len(mine):
                        self._lengthen(n, window, text, mine, length, offset)

    def _lengthen(self, n: int, window: Items, text: _Hasher, starts: NDArray[np.int64], length: int, off: int) -> None:
        """Find the longest run of query `n` among those that begin at `starts` of `window` and have this length."""
        query, step = len(self.queries[n]), 1
        while True:
            wanted = length + step
            there = starts[starts + wanted <= len(window)] if wanted <= query else starts[:0]
            if len(there):
                there = there[_members(text.at(there, wanted), np.unique(self._hashers[n].all(wanted)))]
            if len(there):
                starts, length, step = there, wanted, 2 * step
            elif step == 1:
                break
            else:
                step = 1
        self._compare(n, window, text, starts, length, off)

    def _compare(self, n: int, window: Items, text: _Hasher, starts: NDArray[np.int64], length: int, off: int) -> None:
        """Take a run whose items are the same, not their hash alone."""
        query, keys = self.queries[n], self._hashers[n].all(length)
        for start, found in zip(starts.tolist(), text.at(starts, length), strict=True):
            for begin in np.flatnonzero(keys == found).tolist():
                if np.array_equal(query[begin : begin + length], window[start : start + length]):
                    self.overlaps[n] = Overlap(length, begin, off + start)
                    return

    def _hasher(self, sequence: Items) -> _Hasher:
        return _Hasher(sequence, self._table, self._powers, self._inverses)

    def _extend_powers(self, length: int) -> None:
        if length > len(self._powers):
            self._powers, self._inverses = (_powers(base, length) for base in (_BASE, _inverse(_BASE)))


def _members(hashes: Hashes, keys: Hashes) -> NDArray[np.int64]:
    """The indices of the `hashes` that are among the sorted `keys`."""
    if len(hashes) > 4 * len(keys):  # building the filter pays
        shift = np.uint64(64 - _FILTER_BITS)
        passes = np.zeros(1 << _FILTER_BITS, bool)
        passes[keys >> shift] = True
        candidates = np.flatnonzero(passes[hashes >> shift])
    else:
        candidates = np.arange(len(hashes))
    found = np.searchsorted(keys, hashes[candidates])
    found[found == len(keys)] = 0
    return candidates[keys[found] == hashes[candidates]] if len(keys) else candidates[:0]


def _powers(base: np.uint64, count: int) -> Hashes:
    """1, base, base^2, ... modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _inverse(base: np.uint64) -> np.uint64:
    return np.uint64(pow(int(base), -1, 2**64))
