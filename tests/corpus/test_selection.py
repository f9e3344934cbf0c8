"""Duplicates, limits, and the split."""

import hashlib
from dataclasses import replace

import pytest
from support.corpus import CORPUS, TextSource

from smollm.corpus import digests as digests_module
from smollm.corpus.digests import Digests
from smollm.corpus.document import PART
from smollm.corpus.selection import SelectionCounts, Splitter, select, training_texts

DOCUMENTS = {f"file{n}": f"text number {n}" for n in range(60)}


def splits(documents: dict[str, str], splitter: Splitter | None = None) -> dict[str, str]:
    return {
        selected.document.key: selected.split
        for selected in select(TextSource(documents), CORPUS, splitter or Splitter(0.3), SelectionCounts())
    }


def test_many_digests_are_told_apart_in_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests_module, "_RECENT", 10)
    names = [hashlib.sha256(str(n).encode()).digest() for n in range(1000)]
    names += [bytes(32), b"\xff" * 15 + bytes(17)]  # ends in zeros
    digests = Digests()
    for name in names[::2]:
        assert name not in digests
        digests.add(name)
        assert name in digests
    assert all(name in digests for name in names[::2])
    assert not any(name in digests for name in names[1::2])


def test_documents_stay_in_their_split_when_others_are_added() -> None:
    before = splits({key: text for key, text in DOCUMENTS.items() if key < "file3"})
    after = splits(DOCUMENTS)
    assert before == {key: after[key] for key in before}
    assert 8 < sum(split == "validation" for split in after.values()) < 30


def test_a_text_that_an_earlier_stage_has_under_another_key_is_in_the_split_that_it_has_there() -> None:
    splitter = Splitter(0.3)
    first = splits(DOCUMENTS, splitter)
    again = splits({f"other{key}": text for key, text in DOCUMENTS.items()}, splitter)
    assert list(again.values()) == list(first.values())
    assert set(again.values()) == {"train", "validation"}
    alone = splits({f"other{key}": text for key, text in DOCUMENTS.items()})
    assert alone != again  # by their keys they would be elsewhere


def test_the_number_of_documents_is_limited_after_duplicates_are_out() -> None:
    corpus = replace(CORPUS, max_documents=5)
    texts = {"a": "same", "b": "same", **DOCUMENTS}
    assert [
        selected.document.key for selected in select(TextSource(texts), corpus, Splitter(0.3), SelectionCounts())
    ] == [
        "a",
        *list(DOCUMENTS)[:4],
    ]


def test_a_tokenizer_learns_from_no_more_than_it_is_allowed_of_one_long_document() -> None:
    text = "a line of text\n" * 200_000
    for key in ("file0", "file1", "file2", "file5"):  # in either split
        size = sum(map(len, training_texts(TextSource({key: text}), replace(CORPUS, max_megabytes=10), 1.5)))
        assert 1_500_000 - PART <= size <= 1_500_000
