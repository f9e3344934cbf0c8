"""The set of digests."""

from smollm.corpus.digests import Digests


def test_any_of_several_digests_is_found() -> None:
    digests = Digests(8)
    assert not digests.has_any([])
    digests.add(b"12345678")
    assert digests.has_any([b"87654321", b"12345678"])
    assert not digests.has_any([b"87654321"])
