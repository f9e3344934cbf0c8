"""A child process that computes MinHash signatures: short digests by which similar texts are found.

A text is taken as the set of its sequences of five words. The share of minimal hashes on which two texts agree
estimates the Jaccard similarity of their sets (Broder 1997). The hashes are cut into bands, of which only a digest is
kept: two texts are taken as similar if they agree in a whole band, which is likely above a similarity that follows from
the number of rows in a band (locality-sensitive hashing; Leskovec et al., Mining of Massive Datasets, chapter 3).
"""

from array import array
from collections.abc import Callable
from hashlib import blake2b

from rensa import RMinHash

from smollm.corpus.child_process import ChildProcess

HASHES = 128
"""Hashes of a signature."""

BAND_BYTES = 8
"""Bytes of a band's digest."""

_WORDS = 5
"""Words in a sequence."""

_LONGEST_MEAN_WORD = 32
"""Bytes; in a text without spaces, such as Chinese, "words" are longer on average, and characters take their place."""

_SEPARATORS = bytes(code if code >= 128 or chr(code).isalnum() or chr(code) == "_" else ord(" ") for code in range(256))


class SigningProcess(ChildProcess):
    """One child process that signs texts."""

    def __init__(self, bands: int, rows: int) -> None:
        super().__init__("a process that looks for near-duplicates", start, bands, rows)

    def sign(self, texts: list[list[str]]) -> list[bytes]:
        """The digests of each text's bands, (bands * BAND_BYTES,); a text is given in parts.

        Raises:
            CorpusError: the process ended.
        """
        signatures: list[bytes] = self.ask(texts)
        return signatures


def start(bands: int, rows: int) -> Callable[[list[list[str]]], list[bytes]]:
    """In the child: the function that signs texts."""
    return lambda texts: [signature(parts, bands, rows) for parts in texts]


def signature(parts: list[str], bands: int, rows: int) -> bytes:
    """The digests of the bands of a text."""
    sketch = RMinHash(num_perm=HASHES, seed=1)
    for part in parts:
        sketch.update(sequences(part))
    hashes = array("I", sketch.digest()).tobytes()
    size = len(hashes) // HASHES * rows
    return b"".join(
        # salted, so that equal hashes in different bands are no match
        blake2b(hashes[band * size : (band + 1) * size], digest_size=BAND_BYTES, salt=band.to_bytes(2, "big")).digest()
        for band in range(bands)
    )


def sequences(text: str) -> list[bytes]:
    """Every five words of `text` that follow each other. White space and punctuation count for nothing."""
    content = text.encode()
    words = content.translate(_SEPARATORS).split()
    if len(words) * _LONGEST_MEAN_WORD < len(content):
        words = [character.encode() for character in text if not character.isspace()]
    if len(words) < _WORDS:
        return [b" ".join(words) or content]
    return [b" ".join(sequence) for sequence in zip(*(words[first:] for first in range(_WORDS)), strict=False)]
