"""Documents to token files: split, deduplicated, encoded, with a manifest."""

import csv
import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpus import CORPUS, END_OF_TEXT, TextSource, write_tokens
from tokenizers import Tokenizer

from smollm.corpus import tail, token_writer, tokenizer
from smollm.corpus.document import Document
from smollm.corpus.selection import SelectionCounts, Splitter, is_split_by_tail, select, training_texts
from smollm.corpus.token_writer import SplitWriter
from smollm.errors import CorpusError, user_error
from smollm.state.tokens import as_plain_text, documents_of, open_split


@pytest.fixture(scope="module")
def small_tokenizer() -> Tokenizer:
    return as_plain_text(tokenizer.train(["the quick brown fox " * 20], 300, END_OF_TEXT))


def write(directory: Path, documents: dict[str, str], bpe: Tokenizer, **settings: Any) -> dict[str, Any]:
    corpus = replace(CORPUS, **settings)
    return write_tokens(directory, TextSource(documents), bpe, corpus=corpus)


DOCUMENTS = {f"file{n}": f"the fox number {n} 😀\n\tjumps\n" for n in range(40)}


def test_the_files_hold_every_document_followed_by_end_of_text(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    manifest = write(tmp_path, DOCUMENTS, small_tokenizer)
    texts = []
    for split in ("train", "validation"):
        ids = open_split(tmp_path, split)
        offsets = np.fromfile(tmp_path / f"{split}.offsets.bin", np.uint64)
        assert len(ids) == manifest[split]["tokens"]
        assert len(offsets) == manifest[split]["documents"]
        for start, end in zip(offsets, [*offsets[1:], len(ids)], strict=True):
            document = ids[int(start) : int(end)].tolist()
            assert document[-1] == manifest["end_of_text_id"]
            texts.append(small_tokenizer.decode(document[:-1]))
    assert sorted(texts) == sorted(DOCUMENTS.values())


@pytest.mark.parametrize("split", [None, "train", "validation"], ids=["by document", "all train", "all validation"])
def test_each_document_is_found_by_its_place(split: str | None, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    keys = [f"file{n}" for n in range(80)]
    chosen = [key for key in keys if split in (None, Splitter(0.5).split_of(Document.of(key, key)))]
    documents = {key: f"the fox of {key} *\n\tjumps\n" for key in chosen}
    manifest = write(tmp_path, documents, small_tokenizer, validation_fraction=0.5)
    assert (manifest["split"] == "by document") is (split is None)
    ids = open_split(tmp_path, "train")
    offsets, names = documents_of(tmp_path, "train")
    assert len(offsets) == len(names) > 10
    places = [int(place) for place in offsets]
    for name, start, end in zip(names, places, [*places[1:], len(ids)], strict=True):
        text = small_tokenizer.decode(ids[start : max(start, end - 1)].tolist())
        assert documents[name].startswith(text)
        assert text == documents[name] or (split is not None and name == names[-1])


def test_the_manifest_counts_bytes_and_tokens(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    manifest = write(tmp_path, DOCUMENTS, small_tokenizer)
    assert manifest["split"] == "by document"
    counts = [manifest[split] for split in ("train", "validation")]
    assert all(count["documents"] > 0 for count in counts)
    assert sum(count["bytes"] for count in counts) == sum(len(text.encode()) for text in DOCUMENTS.values())
    digest = hashlib.sha256((tmp_path / "train.bin").read_bytes()).hexdigest()
    assert manifest["train"]["sha256"] == digest
    with (tmp_path / "documents.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {row["key"]: row["sha256"] for row in rows} == {
        key: hashlib.sha256(text.encode()).hexdigest() for key, text in DOCUMENTS.items()
    }
    for split in ("train", "validation"):
        rows_of_split = [row for row in rows if row["split"] == split]
        assert sum(int(row["tokens"]) + 1 for row in rows_of_split) == manifest[split]["tokens"]


def test_a_documents_split_follows_from_its_key_alone(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    code = {key: f"code of {key}" for key in DOCUMENTS}
    documentation = {key: f"documentation of {key}" for key in reversed(DOCUMENTS)}
    splits = []
    for name, documents in (("code", code), ("docs", documentation)):
        write(tmp_path / name, documents, small_tokenizer)
        with (tmp_path / name / "documents.tsv").open() as file:
            splits.append({row["key"]: row["split"] for row in csv.DictReader(file, delimiter="\t")})
    assert splits[0] == splits[1]
    assert set(splits[0].values()) == {"train", "validation"}


def test_exact_duplicates_are_removed_before_the_split(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    documents = {**DOCUMENTS, **{f"copy{n}": DOCUMENTS[f"file{n}"] for n in range(7)}}
    manifest = write(tmp_path, documents, small_tokenizer)
    assert manifest["duplicates_removed"] == 7
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] == len(DOCUMENTS)


def test_the_text_is_capped(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    size = len(DOCUMENTS["file0"].encode())
    manifest = write(tmp_path, DOCUMENTS, small_tokenizer, max_megabytes=5.5 * size / 1e6)
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] == 5


@pytest.mark.parametrize("key", ["file0", "file1", "file2", "file3", "file4", "file5", "file6", "file7"])
def test_a_single_document_is_cut_into_training_text_and_a_held_out_tail(
    key: str, tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 30
    manifest = write(tmp_path, {key: text}, small_tokenizer, validation_fraction=0.25)
    assert manifest["split"].startswith("by tail")
    ids = [open_split(tmp_path, split).tolist() for split in ("train", "validation")]
    assert small_tokenizer.decode([*ids[0], *ids[1][:-1]]) == text
    assert len(ids[1]) == int(0.25 * (len(ids[0]) + len(ids[1])))
    assert manifest["train"]["bytes"] + manifest["validation"]["bytes"] == len(text)


IN_ONE_SPLIT = [
    key for key in (f"file{n}" for n in range(40)) if Splitter(0.3).split_of(Document.of(key, key)) == "train"
]
"""Keys of documents that are all trained on."""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("name", ["validation.bin", "validation.offsets.bin"])
@pytest.mark.parametrize("words", [3, 30_000])
def test_a_disk_that_is_full_when_the_text_is_cut_is_one_line(
    name: str, words: int, tmp_path: Path, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_writer, "file_digest", lambda *_: "")  # reading such a file has no end

    def join_on_a_full_disk(*splits: SplitWriter) -> None:
        join(*splits)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/full")

    join = tail._join
    monkeypatch.setattr(tail, "_join", join_on_a_full_disk)
    with pytest.raises(OSError) as full:
        write(tmp_path, {IN_ONE_SPLIT[0]: "fox " * words}, small_tokenizer)
    assert "the disk is full" in str(user_error(full.value))


def test_several_documents_in_one_split_are_cut_with_their_places(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    texts = {key: f"the fox number {key} jumps" for key in IN_ONE_SPLIT[:6]}
    manifest = write(tmp_path, texts, small_tokenizer)
    assert manifest["split"].startswith("by tail")
    places = {split: documents_of(tmp_path, split) for split in ("train", "validation")}
    found = {}
    for split, (offsets, names) in places.items():
        ids = open_split(tmp_path, split)
        assert len(ids) == manifest[split]["tokens"]
        assert len(offsets) == len(names) == manifest[split]["documents"]
        ends = [*offsets[1:].tolist(), len(ids)]
        parts = [ids[start:end].tolist() for start, end in zip(offsets.tolist(), ends, strict=True)]
        found[split] = [small_tokenizer.decode(part, skip_special_tokens=False) for part in parts]
    (_, first), (_, last) = places.values()
    assert set(first) | set(last) == set(texts)
    shared = int(first[-1] == last[0])
    assert len(first) + len(last) == 6 + shared
    assert "".join(found["train"] + found["validation"]) == "".join(text + END_OF_TEXT for text in texts.values())
    assert found["train"][0] == texts[first[0]] + END_OF_TEXT
    assert found["validation"][-1] == texts[last[-1]] + END_OF_TEXT


def test_text_that_is_cut_in_one_stage_is_no_others_unless_it_is_the_very_same(
    tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    few = {key: f"the fox number {key} jumps" for key in IN_ONE_SPLIT[:3]}
    many = {**DOCUMENTS, **few}
    cases = {
        "the same": (few, few, None),
        "none in common": (few, {f"x{n}": f"text {n}" for n in range(40)}, None),
        "cut, then more": (few, many, "got 3 common ones"),
        "more, then cut": (many, few, "got 3 common ones"),
        "cut, then fewer": (few, dict(list(few.items())[:1]), "got 1 common ones"),
        "many, twice": (many, many, None),
    }
    for name, (first, second, message) in cases.items():
        splitter = Splitter(0.3)
        write_tokens(tmp_path / name / "1", TextSource(first), small_tokenizer, splitter)
        raises = pytest.raises(CorpusError, match=message) if message else nullcontext()
        with raises:
            write_tokens(tmp_path / name / "2", TextSource(second), small_tokenizer, splitter)


def test_the_tokenizer_learns_from_the_training_split_alone() -> None:
    source = TextSource(DOCUMENTS)
    train = {
        selected.document.text
        for selected in select(source, CORPUS, Splitter(0.3), SelectionCounts())
        if selected.split == "train"
    }
    assert set(training_texts(source, CORPUS, 1.0)) == train
    assert 0 < len(train) < len(DOCUMENTS)


def test_the_tokenizers_text_is_capped() -> None:
    size = len(DOCUMENTS["file0"].encode())
    assert len(list(training_texts(TextSource(DOCUMENTS), CORPUS, 3.5 * size / 1e6))) == 3


def test_the_tokenizer_learns_from_a_lone_document_up_to_its_held_out_end() -> None:
    text = "".join(f"{n:03}\n" for n in range(1000))
    for key in DOCUMENTS:  # in either split
        assert "".join(training_texts(TextSource({key: text}), CORPUS, 1.0)) == text[: int(0.7 * len(text))]


def test_the_tokenizer_learns_nothing_of_the_held_out_end_of_documents_that_are_all_in_one_split(
    tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    texts = {key: f"the fox number {key} jumps é over " * 40 for key in IN_ONE_SPLIT[:3]}
    source = TextSource(texts)
    learned = "".join(training_texts(source, CORPUS, 1.0))
    assert "".join(texts.values()).startswith(learned)
    assert 0.699 < len(learned.encode()) / len("".join(texts.values()).encode()) <= 0.7
    manifest = write_tokens(tmp_path, source, small_tokenizer)
    assert manifest["train"]["bytes"] == pytest.approx(len(learned.encode()), rel=0.01)


def test_a_special_token_in_a_document_is_plain_text(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    text = f"before {END_OF_TEXT} after"
    manifest = write(tmp_path, {"a": text, "b": "other"}, small_tokenizer)
    ids = [t for split in ("train", "validation") for t in open_split(tmp_path, split)]
    assert ids.count(manifest["end_of_text_id"]) == 2


def test_no_text_is_one_clear_line(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.pretrain must give text to train on, got none; add text"):
        write(tmp_path, {}, small_tokenizer)


def test_a_cap_below_the_first_document_is_one_clear_line(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.max_megabytes must hold the first document \(file0"):
        write(tmp_path, DOCUMENTS, small_tokenizer, max_megabytes=1e-6)


HELD_OUT = [key for key in (f"file{n}" for n in range(40)) if key not in IN_ONE_SPLIT]
UNEQUAL = {
    "a long one held out": {**DOCUMENTS, HELD_OUT[0]: "the quick brown fox jumps " * 400},
    "a long one trained on": {**DOCUMENTS, IN_ONE_SPLIT[0]: "the quick brown fox jumps " * 4000},
}


@pytest.mark.parametrize("texts", UNEQUAL.values(), ids=UNEQUAL)
def test_unequal_documents_are_split_at_the_end_of_all_of_them(
    texts: dict[str, str], tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    manifest = write(tmp_path, texts, small_tokenizer)
    assert manifest["split"].startswith("by tail: documents too few or too unequal")
    total = manifest["train"]["tokens"] + manifest["validation"]["tokens"]
    assert manifest["validation"]["tokens"] == int(0.3 * total)
    assert manifest["train"]["bytes"] + manifest["validation"]["bytes"] == sum(len(t.encode()) for t in texts.values())
    names, parts = [], []
    for split in ("train", "validation"):
        ids = open_split(tmp_path, split)
        offsets, keys = documents_of(tmp_path, split)
        names += keys
        ends = [*offsets[1:].tolist(), len(ids)]
        for start, end in zip(offsets.tolist(), ends, strict=True):
            parts.append(small_tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=False))
    assert "".join(parts) == "".join(texts[key] + END_OF_TEXT for key in dict.fromkeys(names))
    assert set(names) == set(texts)
    assert len(names) - len(texts) in (0, 1), "one document may be cut"
    assert manifest["documents"] == len(texts), "one that is cut counts once"
    learned = "".join(training_texts(TextSource(texts), CORPUS, 1.0))
    assert "".join(texts[key] for key in dict.fromkeys(names)).startswith(learned)
    assert learned
    assert manifest["train"]["bytes"] == pytest.approx(len(learned.encode()), rel=0.02)


@pytest.mark.parametrize(
    ("documents", "held_out", "is_by_tail"),
    [(50, 50, False), (50, 24, True), (50, 201, True), (10_000, 24, False), (10_000, 0, True), (10_000, 1000, True)],
)
def test_the_split_is_by_document_where_that_is_fair_or_documents_are_many(
    documents: int, held_out: int, is_by_tail: bool
) -> None:
    assert is_split_by_tail(documents, 1000 - held_out, held_out, 0.1) is is_by_tail
