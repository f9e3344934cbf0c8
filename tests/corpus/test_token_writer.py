"""Token files whose writing was interrupted: gone on with where progress was saved, with the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpus import CORPUS, END_OF_TEXT, TextSource, write_tokens
from tokenizers import Tokenizer

from smollm.corpus import encode, tokenizer
from smollm.corpus.document import PART, Document
from smollm.corpus.encode import Encoder
from smollm.corpus.selection import Splitter
from smollm.errors import CorpusError
from smollm.state.tokens import as_plain_text

MANY = {f"file{n}": f"the cat number {n} sat on the mat\n" * (1 + n % 5) for n in range(200)}
IN_ONE_SPLIT = [key for key in MANY if Splitter(0.3).split_of(Document.of(key, key)) == "train"][:3]
CORPORA = {
    "many documents": MANY,
    "one long document": {"a": "the cat sat on the mat, and " * (6 * PART // 28)},
    "a few long ones in one split": {
        key: f"{key} sat on the mat " * (20 if key == IN_ONE_SPLIT[0] else 9000) for key in IN_ONE_SPLIT
    },
    "odd names": {f"a\"b'{n}\u00e9 #{n}": f"the cat {n}" for n in range(400)},
}


class Stop(Exception):
    """Stands in for a kill: nothing is saved after it."""


def stop_at(count: int) -> Callable[[int], None]:
    """A callback that raises when it is called for the `count`-th time."""
    calls = iter(range(1, count))

    def on_progress(_: int) -> None:
        if next(calls, None) is None:
            raise Stop

    return on_progress


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def plain(tokenizer: Tokenizer) -> Tokenizer:
    return as_plain_text(tokenizer)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is a few short documents, or a part of a long one; progress is saved after two or three."""
    monkeypatch.setattr(encode, "_BATCH_CHARACTERS", 400)
    monkeypatch.setattr(encode, "_SAVE_BYTES", 1000)


class Writing:
    """Counts the text that is encoded, and keeps what a start says of the one before."""

    def __init__(self, directory: Path, texts: dict[str, str], plain: Tokenizer) -> None:
        self.encoder = Encoder(plain, END_OF_TEXT, CORPUS, Splitter(CORPUS.validation_fraction))
        self.encoded_bytes = 0
        self.resumed: list[tuple[int, int]] = []
        self.manifest = self.encoder.write(
            directory, TextSource(texts), self._count, lambda *written: self.resumed.append(written)
        )

    def _count(self, text_bytes: int) -> None:
        self.encoded_bytes += text_bytes


def interrupt(directory: Path, texts: dict[str, str], plain: Tokenizer, count: int) -> None:
    with pytest.raises(Stop):
        write_tokens(directory, TextSource(texts), plain, on_progress=stop_at(count))


@pytest.mark.parametrize("texts", CORPORA.values(), ids=CORPORA)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_interrupted_writing_goes_on_with_the_same_bytes(
    count: int, texts: dict[str, str], tmp_path: Path, plain: Tokenizer
) -> None:
    size = sum(len(text.encode()) for text in texts.values())
    alone = Writing(tmp_path / "alone", texts, plain)
    assert (alone.encoded_bytes, alone.resumed) == (size, [])
    interrupt(tmp_path / "again", texts, plain, count)
    again = Writing(tmp_path / "again", texts, plain)
    assert files(tmp_path / "again") == files(tmp_path / "alone")
    saved = sum(text_bytes for _, text_bytes in again.resumed)
    assert again.encoded_bytes == size - saved
    assert saved or count < 5


def test_what_was_written_after_the_last_save_is_cut_off(tmp_path: Path, plain: Tokenizer) -> None:
    write_tokens(tmp_path / "alone", TextSource(MANY), plain)
    interrupt(tmp_path / "again", MANY, plain, 6)
    for path in (tmp_path / "again").iterdir():
        if path.name != "progress.json":
            path.write_bytes(path.read_bytes() + b"torn\tby\na\tkill\n")
    assert Writing(tmp_path / "again", MANY, plain).resumed
    assert files(tmp_path / "again") == files(tmp_path / "alone")


def test_several_interruptions_in_a_row_change_nothing(tmp_path: Path, plain: Tokenizer) -> None:
    write_tokens(tmp_path / "alone", TextSource(MANY), plain)
    for count in (4, 1, 5, 3):
        interrupt(tmp_path / "again", MANY, plain, count)
    assert Writing(tmp_path / "again", MANY, plain).resumed
    assert files(tmp_path / "again") == files(tmp_path / "alone")


def test_a_file_that_lost_what_was_saved_is_one_line(tmp_path: Path, plain: Tokenizer) -> None:
    interrupt(tmp_path, MANY, plain, 6)
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"train\.bin: must have the [\d,]+ bytes that were written, got 0; remove "):
        write_tokens(tmp_path, TextSource(MANY), plain)


@pytest.mark.parametrize("change", ["one changed", "one removed", "one added", "all others", "cut short"])
def test_text_that_changed_meanwhile_is_encoded_from_there_on(change: str, tmp_path: Path, plain: Tokenizer) -> None:
    items = list(MANY.items())
    changed = {
        "one changed": dict([*items[:7], ("file7", "the dog"), *items[8:]]),
        "one removed": dict([*items[:7], *items[8:]]),
        "one added": dict([*items[:7], ("new", "the dog"), *items[7:]]),
        "all others": {f"x{key}": f"x{text}" for key, text in items},
        "cut short": dict(items[:9]),
    }[change]
    write_tokens(tmp_path / "alone", TextSource(changed), plain)
    interrupt(tmp_path / "again", MANY, plain, 6)
    write_tokens(tmp_path / "again", TextSource(changed), plain)
    assert files(tmp_path / "again") == files(tmp_path / "alone")


def test_progress_of_another_tokenizer_is_not_used(tmp_path: Path, plain: Tokenizer) -> None:
    other = as_plain_text(tokenizer.train(["the cat sat on the mat"], 260, END_OF_TEXT))
    interrupt(tmp_path / "again", MANY, other, 6)
    again = Writing(tmp_path / "again", MANY, plain)
    write_tokens(tmp_path / "alone", TextSource(MANY), plain)
    assert not again.resumed
    assert files(tmp_path / "again") == files(tmp_path / "alone")


def test_a_stage_after_a_finished_one_is_split_as_without_a_kill(tmp_path: Path, plain: Tokenizer) -> None:
    """Texts that move keys to another split must be known to the splitter when the first stage is only reread."""
    second = {f"other{key}": text for key, text in MANY.items()}

    def encoder() -> Encoder:
        return Encoder(plain, END_OF_TEXT, CORPUS, Splitter(CORPUS.validation_fraction))

    left_alone, killed = encoder(), encoder()
    first_manifest = left_alone.write(tmp_path / "first", TextSource(MANY))
    left_alone.write(tmp_path / "alone", TextSource(second))
    assert killed.reread(tmp_path / "first", TextSource(MANY)) == first_manifest
    killed.write(tmp_path / "again", TextSource(second))
    assert files(tmp_path / "again") == files(tmp_path / "alone")
    encoder().write(tmp_path / "without", TextSource(second))
    assert files(tmp_path / "without") != files(tmp_path / "alone")


@pytest.mark.parametrize("texts", [{**MANY, "new": "text"}, dict(list(MANY.items())[:-1]), {**MANY, "file3": "other"}])
def test_rereading_another_text_is_one_line(texts: dict[str, str], tmp_path: Path, plain: Tokenizer) -> None:
    manifest: dict[str, Any] = write_tokens(tmp_path, TextSource(MANY), plain)
    encoder = Encoder(plain, END_OF_TEXT, CORPUS, Splitter(CORPUS.validation_fraction))
    assert encoder.reread(tmp_path, TextSource(MANY)) == manifest
    with pytest.raises(
        CorpusError, match=r"corpus\.pretrain: its text changed since the start that was killed; remove"
    ):
        Encoder(plain, END_OF_TEXT, CORPUS, Splitter(0.3)).reread(tmp_path, TextSource(texts))
