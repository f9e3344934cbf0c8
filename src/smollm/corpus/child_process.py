"""A child process that works on one core, and the handle that its parent uses.

Python has one interpreter lock, so only processes use many cores. A child talks over its standard streams and ends when
they close: it never outlives its parent, whatever signal ends that.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from smollm.errors import CorpusError

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    # else glibc keeps the memory of a long text
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


class ChildProcess:
    """One child process. Not to be used by two threads at once."""

    def __init__(self, name: str, start: Callable[..., Callable[[Any], Any]], *arguments: object) -> None:
        """
        Args:
            name: what the process is called in an error, such as "an encoding process".
            start: called in the child with `arguments`; returns the function that answers questions.

        Raises:
            CorpusError: the process ended.
        """
        self._name = name
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
            pickle.dump((start, arguments), self._input)

    def ask(self, question: object) -> Any:
        """The child's answer to a question; both are pickled.

        Raises:
            CorpusError: the process ended.
        """
        with self._reporting_its_end():
            pickle.dump(question, self._input)
            self._input.flush()
            return pickle.load(self._output)

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
            raise CorpusError(f"tokenize: {self._name} {_how_it_ended(self._process.returncode)}") from None


def _how_it_ended(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "was killed by SIGKILL; free memory if there was none left, then run `dvc repro` again"
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}; run `dvc repro` again"
    return f"ended with exit status {exit_code}; its own error is printed above"


def main() -> None:
    """The child: answer questions from standard input until it ends, even in the middle of one."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a traceback where nobody reads the answer any more
    try:
        start, arguments = pickle.load(sys.stdin.buffer)
        answer = start(*arguments)
        del arguments
        while True:
            pickle.dump(answer(pickle.load(sys.stdin.buffer)), sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except (EOFError, pickle.UnpicklingError):
        return
