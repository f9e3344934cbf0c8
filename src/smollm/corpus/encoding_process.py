"""A process that encodes texts on one core, and the handle by which others use it.

`tokenizers` shares its threads' cache and Python its one interpreter, so that one process gains little from many
cores. A process here is a child that speaks over its standard streams, and ends when they close: whatever ends the
one that started it, by whatever signal, ends it too.
"""

import os
import pickle
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

from tokenizers import Tokenizer

from smollm.errors import CorpusError

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    # glibc would keep what a long text took
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


class EncodingProcess:
    """One child. Not to be used by two threads at once."""

    def __init__(self, tokenizer: str, type_code: str) -> None:
        """
        Args:
            tokenizer: its JSON.
            type_code: of the ids, as `array` has it.

        Raises:
            CorpusError: the process ended.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **_ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for the one that holds the streams
        )
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        with self._alive():
            pickle.dump((tokenizer, type_code), self._input)

    def encode(self, texts: list[str]) -> list[bytes]:
        """The ids of each text, without special tokens, in the bytes of an array.

        Raises:
            CorpusError: the tokenizer refused a text, or the process ended.
        """
        with self._alive():
            pickle.dump(texts, self._input)
            self._input.flush()
            answer: list[bytes] | str = pickle.load(self._output)
        if isinstance(answer, str):
            raise CorpusError(f"tokenize: the tokenizer must encode any text, got {answer}; use another tokenizer")
        return answer

    def close(self) -> None:
        """End the process, and wait for its end."""
        self._process.communicate()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Say so where the process ends meanwhile, be it in the middle of an answer."""
        try:
            yield
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            self.close()
            raise CorpusError(
                f"tokenize: a process that encodes ended with exit status {self._process.returncode}; "
                "free memory if there was none left, and run `dvc repro` again"
            ) from None


def main() -> None:
    """Answer texts from standard input until it ends, be it in the middle of one."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # without a traceback where nobody waits for the answer any more
    try:
        json, type_code = pickle.load(sys.stdin.buffer)
        tokenizer = Tokenizer.from_str(json)
        del json
        tokenizer.encode_special_tokens = True  # a document that spells one stays text; not part of the JSON
        while True:
            pickle.dump(_answer(tokenizer, type_code, pickle.load(sys.stdin.buffer)), sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except (EOFError, pickle.UnpicklingError):
        return


def _answer(tokenizer: Tokenizer, type_code: str, texts: list[str]) -> list[bytes] | str:
    """The ids of each text, or what was wrong."""
    try:
        # one by one: an encoding takes a hundred times the memory of its ids
        ids = (tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in texts)
        return [array(type_code, one).tobytes() for one in ids]
    except BaseException as error:  # a panic of the library's is no Exception
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    main()
