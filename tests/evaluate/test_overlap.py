"""The longest common run: compared with a search of every pair of positions."""

import numpy as np
import pytest

from smollm.evaluate.overlap import FIRST_PIECE, Items, longest_overlaps, pieces


def every_pair(query: Items, text: Items) -> int:
    """The longest common run, by dynamic programming over all pairs of positions."""
    longest, ends = 0, [0] * (len(text) + 1)
    for item in query.tolist():
        ends = [0, *(ends[j] + 1 if other == item else 0 for j, other in enumerate(text.tolist()))]
        longest = max([longest, *ends])
    return longest


@pytest.mark.parametrize("seed", range(12))
def test_the_longest_run_of_each_query_is_found_wherever_the_text_is_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 4, rng.integers(1, 200)).astype(np.uint16)
    queries: list[Items] = [rng.integers(0, 5, length) for length in (0, 1, 7, 24, 24)]
    queries += [text[20:60].astype(np.int64), np.concatenate([text[5:15], [4], text[50:90]])]
    cuts = np.sort(rng.integers(0, len(text) + 1, 3))
    overlaps = longest_overlaps(queries, np.split(text, cuts), 5)
    assert [overlap.length for overlap in overlaps] == [every_pair(query, text) for query in queries]
    for query, overlap in zip(queries, overlaps, strict=True):
        run = query[overlap.start : overlap.start + overlap.length]
        if overlap.length:
            assert text[overlap.found : overlap.found + overlap.length].tolist() == run.tolist()


def test_a_run_across_pieces_of_a_long_text_is_found_with_its_place() -> None:
    text = np.random.default_rng(0).integers(0, 1000, 5 * FIRST_PIECE).astype(np.uint16)
    begin = FIRST_PIECE - 20  # in the first piece, ending in the second
    query = np.concatenate([[1000, 1001], text[begin : begin + 100].astype(np.int64), [1002]])
    (overlap,) = longest_overlaps([query], (text[piece] for piece in pieces(len(text))), 1003)
    assert (overlap.length, overlap.start, overlap.found) == (100, 2, begin)


def test_pieces_cover_a_text_once() -> None:
    length = 7 * FIRST_PIECE + 3
    covered = [index for piece in pieces(length) for index in range(piece.start, piece.stop)]
    assert covered == list(range(length))


def test_a_query_without_a_known_item_has_no_run() -> None:
    (overlap,) = longest_overlaps([np.array([7, 8])], [np.array([1, 2, 3])], 9)
    assert (overlap.length, overlap.found) == (0, -1)
