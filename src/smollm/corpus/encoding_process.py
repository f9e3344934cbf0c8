"""A child process that encodes texts; the threads of `tokenizers` share one cache, and gain little from many cores."""

from array import array
from collections.abc import Callable

from tokenizers import Tokenizer

from smollm.corpus.child_process import ChildProcess
from smollm.errors import CorpusError


class EncodingProcess(ChildProcess):
    """One child process that encodes."""

    def __init__(self, tokenizer_json: str, type_code: str) -> None:
        """
        Args:
            tokenizer_json: the tokenizer.
            type_code: of the ids, as for `array.array`.
        """
        super().__init__("an encoding process", start, tokenizer_json, type_code)

    def encode(self, texts: list[str]) -> list[bytes]:
        """The ids of each text, without special tokens, as the bytes of an array.

        Raises:
            CorpusError: the tokenizer refused a text, or the process ended.
        """
        answer: list[bytes] | str = self.ask(texts)
        if isinstance(answer, str):
            raise CorpusError(f"tokenize: the tokenizer must encode any text, got {answer}; use another tokenizer")
        return answer


def start(tokenizer_json: str, type_code: str) -> Callable[[list[str]], list[bytes] | str]:
    """In the child: the function that encodes texts, or returns the tokenizer's error."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # special tokens in a text are plain text; not part of the JSON

    def encode(texts: list[str]) -> list[bytes] | str:
        try:
            # one by one: an encoding takes a hundred times the memory of its ids
            encodings = (tokenizer.encode_batch_fast([text], add_special_tokens=False)[0] for text in texts)
            return [array(type_code, encoding.ids).tobytes() for encoding in encodings]
        except BaseException as error:  # a panic of the library's is no Exception
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    return encode
