"""The processes that encode: the same ids, and no process left behind, however it ends."""

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.corpus import END_OF_TEXT, TextSource, write_tokens
from tokenizers import Tokenizer, models

import smollm
from smollm.corpus import child_pool, encode
from smollm.corpus.child_process import main as child_main
from smollm.corpus.document import Document
from smollm.corpus.encoding_process import EncodingProcess, start
from smollm.corpus.selection import Splitter
from smollm.errors import CorpusError
from smollm.state.tokens import as_plain_text

ODD = [
    "",
    f"before {END_OF_TEXT} after{END_OF_TEXT}",
    "NUL \0, mark \ufeff, replacement \ufffd, no characters \uffff \U0010ffff",
    "e\u0301 \u00e9 \ufb01 \u1e9e \u0130 \u202eright to left\u202c 漢字 \ud55c\uae00 \u200d\u200b\x85\u2028",
    "😀 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\r\n\r \t \x1b[0m",
    "x" * 5000 + " " * 5000,
]
LONG = ["the cat sat on the mat " * 100_000]
"""A second's work."""


@pytest.fixture
def plain(tokenizer: Tokenizer) -> Tokenizer:
    return as_plain_text(tokenizer)


@pytest.fixture
def process(plain: Tokenizer) -> Iterator[EncodingProcess]:
    process = EncodingProcess(plain.to_str(), "H")
    yield process
    process.close()
    assert not children()


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is a few of the documents below."""
    monkeypatch.setattr(child_pool, "core_count", lambda: 3)
    monkeypatch.setattr(encode, "_BATCH_CHARACTERS", 100)


def children() -> list[psutil.Process]:
    """Those of this process, the dead that nobody waited for included."""
    return psutil.Process().children()


class Lines(TextSource):
    """400 documents; in the middle `fault` is called."""

    def __init__(self, fault: Callable[[], None] = lambda: None) -> None:
        super().__init__({f"file{n}": f"the cat number {n} sat on the mat\n" for n in range(400)})
        self.fault = fault

    def documents(self) -> Iterator[Document]:
        for number, document in enumerate(super().documents()):
            if number == 200:
                self.fault()
            yield document


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_ids_are_those_of_the_tokenizer_here(dtype: type[np.unsignedinteger], plain: Tokenizer) -> None:
    process = EncodingProcess(plain.to_str(), np.dtype(dtype).char)
    for texts in (ODD, [], LONG):
        ids = [encoding.ids for encoding in plain.encode_batch_fast(texts, add_special_tokens=False)]
        assert process.encode(texts) == [np.array(text_ids, dtype).tobytes() for text_ids in ids]
    process.close()


def test_the_files_are_those_of_the_tokenizer_here(tmp_path: Path, three_cores: None, plain: Tokenizer) -> None:
    source = Lines()
    source.texts |= {f"odd{n}": text for n, text in enumerate([*ODD[1:], "half a pair \ud83d", "\ude00\ud83d"])}
    manifest = write_tokens(tmp_path, source, plain)
    splitter, ids = Splitter(0.3), {"train": list[int](), "validation": list[int]()}
    for document in source.documents():
        encoded = plain.encode(document.text, add_special_tokens=False).ids
        ids[splitter.split_of(document)] += [*encoded, manifest["end_of_text_id"]]
    for split, expected in ids.items():
        assert np.fromfile(tmp_path / f"{split}.bin", manifest["dtype"]).tolist() == expected


def test_as_many_processes_are_started_as_there_are_batches_and_cores(
    tmp_path: Path, three_cores: None, plain: Tokenizer
) -> None:
    for source, expected in ((TextSource({"a": "one", "b": "two"}), 1), (Lines(), 3)):
        seen = []
        write_tokens(tmp_path, source, plain, on_progress=lambda _: seen.append(len(children())))  # noqa: B023 - used at once
        assert max(seen) == expected
        assert not children()


def fail(*_: object) -> None:
    raise CorpusError("a fault of the test")


def kill_one() -> None:
    children()[0].kill()


@pytest.mark.parametrize(
    ("fault", "progress", "message"),
    [
        (fail, lambda _: None, "a fault of the test"),
        (lambda: None, fail, "a fault of the test"),
        (kill_one, lambda _: None, "an encoding process was killed by SIGKILL; free memory"),
    ],
    ids=["the reader", "the writer", "a process"],
)
def test_a_fault_in_the_middle_ends_all_processes(
    fault: Callable[[], None],
    progress: Callable[[int], None],
    message: str,
    tmp_path: Path,
    three_cores: None,
    plain: Tokenizer,
) -> None:
    with pytest.raises(CorpusError, match=message):
        write_tokens(tmp_path, Lines(fault), plain, on_progress=progress)
    assert not children()


def test_a_reader_that_fails_while_processes_are_busy_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Tokenizer
) -> None:
    monkeypatch.setattr(child_pool, "core_count", lambda: 3)

    class Long(TextSource):
        def documents(self) -> Iterator[Document]:
            for number in range(3):
                yield Document.of(str(number), f"{number} {LONG[0][:300_000]}")
            fail()

    with pytest.raises(CorpusError, match="a fault of the test"):
        write_tokens(tmp_path, Long({}), plain)
    assert not children()


def test_a_kill_of_the_process_is_one_clear_line(process: EncodingProcess) -> None:
    (child,) = children()
    child.kill()
    with pytest.raises(CorpusError, match="was killed by SIGKILL; free memory if there was none left"):
        process.encode(ODD)


def test_a_kill_while_it_encodes_is_the_same_line(process: EncodingProcess) -> None:
    process.encode(ODD)
    (child,) = children()
    threading.Timer(0.2, child.kill).start()
    with pytest.raises(CorpusError, match="was killed by SIGKILL"):
        process.encode(LONG)


def test_half_an_answer_is_the_same_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Tokenizer) -> None:
    half = tmp_path / "python3"
    half.write_text("#!/bin/sh\nprintf '\\200\\004\\225'\nexec >&-\ncat >/dev/null\nexit 3\n")
    half.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(half))
    process = EncodingProcess(plain.to_str(), "H")
    with pytest.raises(CorpusError, match="ended with exit status 3"):
        process.encode(ODD)
    assert not children()


def test_a_text_that_the_tokenizer_refuses_is_one_clear_line_and_no_end(process: EncodingProcess) -> None:
    with pytest.raises(CorpusError, match=r"the tokenizer must encode any text, got TypeError: .*; use another"):
        process.encode(["half a pair \ud83d"])
    assert len(process.encode(["one", "two"])) == 2


def test_a_tokenizer_that_refuses_a_text_is_one_clear_line(tmp_path: Path, three_cores: None) -> None:
    bpe = Tokenizer(models.WordLevel({END_OF_TEXT: 0, "word": 1}, unk_token="[UNK]"))
    with pytest.raises(CorpusError, match=r"must encode any text, got Exception: WordLevel error: Missing \[UNK\]"):
        write_tokens(tmp_path, Lines(), bpe)
    assert not children()


@pytest.mark.parametrize("then", ["time.sleep(60)", "process.encode([' '.join(map(str, range(200_000)))])"])
def test_a_kill_of_the_one_that_started_it_ends_it_without_a_word(then: str, plain: Tokenizer) -> None:
    code = (
        "import sys, time; from smollm.corpus.encoding_process import EncodingProcess\n"
        "process = EncodingProcess(sys.stdin.read(), 'H'); process.encode(['text'])\n"
        f"print('ready', flush=True); {then}"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin and parent.stdout
    parent.stdin.write(plain.to_str())
    parent.stdin.close()
    assert parent.stdout.readline() == "ready\n"
    time.sleep(0.2)
    parent.kill()
    assert parent.stderr and parent.stderr.read() == ""  # which the child holds as well, until it ends
    parent.wait()
    parent.stdout.close()
    parent.stderr.close()


def test_a_message_that_breaks_off_ends_it_without_a_word(plain: Tokenizer) -> None:
    first, second = pickle.dumps((start, (plain.to_str(), "H"))), pickle.dumps(ODD)
    for message in (b"", first[:5], first[:-5], first, first + second[:5], first + second[:-5]):
        done = subprocess.run(
            [sys.executable, "-c", f"from {child_main.__module__} import main; main()"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            input=message,
            capture_output=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("folder", ["a:b", "what?", "a%20b", "a#b", "a b", "h\u00e9", "quo'te"])
def test_the_code_may_lie_in_a_folder_of_any_name(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Tokenizer
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "smollm").symlink_to(Path(smollm.__file__).parent)
    others = [path for path in sys.path if not (Path(path) / "smollm").exists()]
    monkeypatch.setattr(sys, "path", [str(tmp_path / folder), *others])
    process = EncodingProcess(plain.to_str(), "H")
    assert process.encode(["text"]) == [np.array(plain.encode("text").ids, np.uint16).tobytes()]
    process.close()
