"""Near-duplicates: which are left out, in which split, and that it is the same however it is computed."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.corpus import CORPUS, END_OF_TEXT, TextSource
from tokenizers import Tokenizer

from smollm.corpus import child_pool, encode, near_duplicates
from smollm.corpus.document import PART, Document
from smollm.corpus.encode import Encoder
from smollm.corpus.near_duplicates import bands_and_rows, found_half_the_time
from smollm.corpus.selection import Selected, SelectionCounts, Splitter, select, training_texts
from smollm.corpus.signing_process import BAND_BYTES, SigningProcess, sequences, signature
from smollm.errors import CorpusError
from smollm.state.tokens import as_plain_text

NEAR = replace(CORPUS, near_duplicate_similarity=0.7)


def words(seed: int, count: int = 400) -> list[str]:
    chance = random.Random(seed)
    return [f"word{chance.randrange(5000)}" for _ in range(count)]


def edited(seed: int, edits: int = 4) -> str:
    """The text of `words(seed)` with a few words changed."""
    text = words(seed)
    for place in range(edits):
        text[50 + 80 * place] = "changed"
    return " ".join(text)


def text_of(seed: int) -> str:
    return " ".join(words(seed))


def kept(
    texts: dict[str, str], splitter: Splitter | None = None, counts: SelectionCounts | None = None
) -> list[Selected]:
    return list(select(TextSource(texts), NEAR, splitter or Splitter(0.3), counts or SelectionCounts()))


def keys(selected: list[Selected]) -> list[str]:
    return [one.document.key for one in selected]


def key_in(split: str, number: int = 0) -> str:
    """The `number`-th key in a split."""
    splitter = Splitter(0.3)
    return [key for key in (f"key{n}" for n in range(200)) if splitter.split_of_key(key) == split][number]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A batch is two or three documents; no process is left behind."""
    monkeypatch.setattr(near_duplicates, "_BATCH_BYTES", 8000)
    yield
    assert not psutil.Process().children()


def test_of_near_duplicates_the_first_is_kept_and_others_are_counted() -> None:
    counts = SelectionCounts()
    texts = {"a": text_of(1), "b": text_of(2), "c": edited(1), "d": text_of(1), "e": edited(2), "f": text_of(3)}
    assert keys(kept(texts, counts=counts)) == ["a", "b", "f"]
    assert (counts.duplicates, counts.near.documents) == (1, 2)
    assert counts.near.bytes == len(texts["c"]) + len(texts["e"])


def test_texts_that_share_half_are_kept() -> None:
    texts = {str(n): " ".join([*words(1)[: 200 + 40], *words(100 + n)[:200]]) for n in range(8)}
    assert len(kept(texts)) == 8


def test_layout_and_punctuation_make_no_difference_and_short_texts_are_told_apart() -> None:
    code = "".join(f"def name{n}(first, second):\n    return first * {n} + second\n\n" for n in range(40))
    other = code.replace(", ", ",").replace("    ", "\t").replace(" * ", "*")
    assert keys(kept({"a": code, "b": other, "c": "x = 1", "d": "x = 2", "e": "...", "f": "---"})) == [*"acdef"]


def test_text_without_spaces_is_compared_by_characters() -> None:
    chance = random.Random(0)
    characters = [chr(0x4E00 + chance.randrange(3000)) for _ in range(600)]
    other = [*characters[:300], "\u4e8c", *characters[301:]]
    assert keys(kept({"a": "".join(characters), "b": "".join(other), "c": "".join(reversed(characters))})) == ["a", "c"]
    assert len(sequences("".join(characters))) == 596


def test_long_texts_are_compared_by_parts_from_all_over() -> None:
    parts = [f"{' '.join(words(n, PART // 10))}\n" for n in range(20)]
    begins_alike = [*parts[:8], *(f"{' '.join(words(100 + n, PART // 10))}\n" for n in range(12))]
    texts = {"a": "".join(parts), "b": "".join([*parts[:-1], "the end\n"]), "c": "".join(begins_alike)}
    corpus = replace(NEAR, max_megabytes=100)
    assert keys(list(select(TextSource(texts), corpus, Splitter(0.3), SelectionCounts()))) == ["a", "c"]


@pytest.mark.parametrize("first", ["train", "validation"])
def test_no_held_out_text_has_a_near_duplicate_in_training_and_it_is_counted_once(first: str) -> None:
    second = {"train": "validation", "validation": "train"}[first]
    texts = {key_in(first): text_of(1), key_in(second): edited(1), key_in(second, 1): edited(1, 3)}
    texts |= {key_in("validation", 2): text_of(2), key_in("train", 3): text_of(3)}
    counts = SelectionCounts()
    splits = {one.document.key: one.split for one in kept(texts, counts=counts)}
    assert splits == {key_in(first): first, key_in("validation", 2): "validation", key_in("train", 3): "train"}
    copied = [edited(1), edited(1, 3)] if second == "validation" else [text_of(1)]
    assert counts.near.copied_documents == len(copied)
    assert counts.near.copied_bytes == sum(map(len, copied))
    assert counts.near.held_out_bytes == sum(map(len, [*copied, text_of(2)]))


def test_a_near_duplicate_in_the_next_stage_is_in_the_same_split_and_moves_its_key() -> None:
    splitter = Splitter(0.3)
    held_out, trained_on = key_in("validation"), key_in("train")
    kept({held_out: text_of(1), trained_on: text_of(2)}, splitter)
    names = [key_in("train", 5), key_in("validation", 5)]
    splits = {one.document.key: one.split for one in kept({names[0]: edited(1), names[1]: edited(2)}, splitter)}
    assert splits == {names[0]: "validation", names[1]: "train"}
    assert splitter.split_of_key(names[0]) == "validation"


def test_a_document_like_texts_of_both_sides_of_an_earlier_stage_is_left_out() -> None:
    splitter = Splitter(0.3)
    base = words(1, 1000)
    ends = {key_in("validation"): " ".join(base[:820]), key_in("train"): " ".join(base[180:])}
    assert len(kept(ends, splitter)) == 2
    counts = SelectionCounts()
    assert keys(kept({"new": " ".join(base)}, splitter, counts)) == []
    assert counts.near.documents == 1


def test_a_key_of_a_document_that_is_left_out_moves_to_the_split_of_the_one_that_is_kept() -> None:
    splitter = Splitter(0.3)
    kept({key_in("validation"): text_of(1), key_in("train"): edited(1)}, splitter)
    assert [one.split for one in kept({key_in("train"): "its documentation"}, splitter)] == ["validation"]


def test_the_tokenizer_learns_from_no_near_duplicate() -> None:
    texts = {key_in("validation"): text_of(1), key_in("train"): edited(1), key_in("train", 1): text_of(2)}
    assert list(training_texts(TextSource(texts), NEAR, 1.0)) == [text_of(2)]


class Faulty(TextSource):
    """Some documents are blank, and the reading ends in an error."""

    def documents(self) -> Iterator[Document]:
        for number, document in enumerate(super().documents()):
            self.left_out.blank = number
            yield document
        raise CorpusError("a fault of the test")


MANY = {f"file{n}": edited(n % 25, n // 25) for n in range(75)}


@pytest.mark.parametrize("cores", [1, 3])
def test_reading_ahead_shows_neither_in_counts_nor_in_errors(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_pool, "core_count", lambda: cores)
    source, counts = Faulty(MANY), SelectionCounts()
    assert len(list(select(source, replace(NEAR, max_documents=10), Splitter(0.3), counts))) == 10
    assert (counts.limit, counts.left_out.blank) == ("max_documents", 10)
    source, seen = Faulty(MANY), 0
    with pytest.raises(CorpusError, match="a fault of the test"):
        for _ in select(source, NEAR, Splitter(0.3), counts):
            seen += 1
    assert seen == 25


def write(directory: Path, plain: Tokenizer, on_progress: object = lambda _: None) -> dict[str, bytes]:
    encoder = Encoder(plain, END_OF_TEXT, NEAR, Splitter(0.3))
    encoder.write(directory, TextSource(MANY), on_progress)  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_files_and_manifest_are_the_same_with_any_number_of_processes_and_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(encode, "_BATCH_CHARACTERS", 4000)
    monkeypatch.setattr(encode, "_SAVE_BYTES", 6000)
    plain = as_plain_text(tokenizer)
    monkeypatch.setattr(child_pool, "core_count", lambda: 1)
    alone = write(tmp_path / "alone", plain)
    monkeypatch.setattr(child_pool, "core_count", lambda: 3)
    assert write(tmp_path / "more", plain) == alone

    calls = iter(range(4))

    def stop(_: int) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "again", plain, stop)
    assert (tmp_path / "again" / "progress.json").exists()
    assert write(tmp_path / "again", plain) == alone
    encoder = Encoder(plain, END_OF_TEXT, NEAR, Splitter(0.3))
    manifest = encoder.reread(tmp_path / "again", TextSource(MANY))
    assert manifest["near_duplicates"]["removed"] == 50
    assert 0 < manifest["near_duplicates"]["held_out_share_with_one_in_training"] <= 1


def test_a_killed_process_is_one_clear_line() -> None:
    process = SigningProcess(14, 9)
    assert [len(digests) for digests in process.sign([["a text"], ["in two", "parts"]])] == [14 * BAND_BYTES] * 2
    psutil.Process().children()[0].kill()
    with pytest.raises(CorpusError, match="process that looks for near-duplicates was killed by SIGKILL; free memory"):
        process.sign([["a text"]])


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.9])
def test_half_of_the_pairs_of_a_similarity_are_found(similarity: float) -> None:
    """Pairs of that similarity and around it, against the formula."""
    bands, rows = bands_and_rows(similarity)
    assert found_half_the_time(bands, rows) == pytest.approx(similarity, abs=0.03)
    for offset, expected in ((-0.2, range(0, 21)), (0.0, range(10, 51)), (0.09, range(36, 61))):
        shared = round(1000 * 2 * (similarity + offset) / (1 + similarity + offset))  # of 1000 sequences each
        matches = 0
        for seed in range(60):
            first = words(seed, 1004)
            second = [*first[: shared + 4], *words(1000 + seed, 1000 - shared)]
            pair = [signature([" ".join(text)], bands, rows) for text in (first, second)]
            digests = [{one[n : n + BAND_BYTES] for n in range(0, len(one), BAND_BYTES)} for one in pair]
            matches += not digests[0].isdisjoint(digests[1])
        assert matches in expected, (offset, matches)
