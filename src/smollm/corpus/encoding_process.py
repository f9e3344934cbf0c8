"""A child process that encodes texts on one core, and the handle that its parent uses.

The threads of `tokenizers` share one cache, and Python has one interpreter lock, so one process gains little from many
cores. A child talks over its standard streams and ends when they close: it never outlives its parent, whatever signal
ends that.
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
    # else glibc keeps the memory of a long text
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


class EncodingProcess:
    """One child process. Not to be used by two threads at once."""

    def __init__(self, tokenizer_json: str, type_code: str) -> None:
        """
        Args:
            tokenizer_json: the tokenizer.
            type_code: of the ids, as for `array.array`.

        Raises:
            CorpusError: the process ended.
        """
        # not by PYTHONPATH, which cannot hold a folder with a colon in its name
        command = f"import sys; sys.path[:] = {sys.path!a}; from {__name__} import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,  # the parent alone answers to Ctrl-C
        )
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        with self._reporting_its_end():
            pickle.dump((tokenizer_json, type_code), self._input)

    def encode(self, texts: list[str]) -> list[bytes]:
        """The ids of each text, without special tokens, as the bytes of an array.

        Raises:
            CorpusError: the tokenizer refused a text, or the process ended.
        """
        with self._reporting_its_end():
            pickle.dump(texts, self._input)
            self._input.flush()
            answer: list[bytes] | str = pickle.load(self._output)
        if isinstance(answer, str):
            raise CorpusError(f"tokenize: the tokenizer must encode any text, got {answer}; use another tokenizer")
        return answer

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()

    @contextmanager
    def _reporting_its_end(self) -> Iterator[None]:
        """Turn the broken pipe or cut-off answer of a process that ended into a CorpusError."""
        try:
            yield
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            self.close()
            raise CorpusError(f"tokenize: an encoding process {_how_it_ended(self._process.returncode)}") from None


def _how_it_ended(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "was killed by SIGKILL; free memory if there was none left, then run `dvc repro` again"
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}; run `dvc repro` again"
    return f"ended with exit status {exit_code}; its own error is printed above"


def main() -> None:
    """The child: encode what comes over standard input until that ends, be it in the middle of a message."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a traceback where nobody reads the answer any more
    try:
        tokenizer_json, type_code = pickle.load(sys.stdin.buffer)
        tokenizer = Tokenizer.from_str(tokenizer_json)
        del tokenizer_json
        tokenizer.encode_special_tokens = True  # special tokens in a text are plain text; not part of the JSON
        while True:
            pickle.dump(_encode(tokenizer, type_code, pickle.load(sys.stdin.buffer)), sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except (EOFError, pickle.UnpicklingError):
        return


def _encode(tokenizer: Tokenizer, type_code: str, texts: list[str]) -> list[bytes] | str:
    """The ids of each text, or the tokenizer's error."""
    try:
        # one by one: an encoding takes a hundred times the memory of its ids
        encodings = (tokenizer.encode_batch_fast([text], add_special_tokens=False)[0] for text in texts)
        return [array(type_code, encoding.ids).tobytes() for encoding in encodings]
    except BaseException as error:  # a panic of the library's is no Exception
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
