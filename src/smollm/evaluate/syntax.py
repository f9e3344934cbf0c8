"""Whether a text that may end anywhere is Python as far as it goes."""

import ast
import io
import tokenize
import warnings

_INCOMPLETE = ast.PyCF_ALLOW_INCOMPLETE_INPUT if hasattr(ast, "PyCF_ALLOW_INCOMPLETE_INPUT") else 0x4000
"""Has Python's parser tell a text that ends too soon from one that is wrong, as the interactive prompt does."""


def has_code(text: str) -> bool:
    """Whether the complete lines of `text` hold more than comments and strings, of which any text makes some."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(_complete_lines(text)).readline):
            if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP):
                return True
    except (tokenize.TokenError, SyntaxError):  # the text ends within a string, or is no Python
        pass
    return False


def is_accepted(text: str) -> bool:
    """Whether `ast.parse` accepts the complete lines of `text`, or finds nothing wrong but that they end too soon."""
    lines = _complete_lines(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(lines + "\n", "sample", "exec", ast.PyCF_ONLY_AST | _INCOMPLETE)
    except SyntaxError as error:
        return "incomplete input" in str(error)
    except (ValueError, RecursionError, MemoryError):  # a null byte, or nested too deeply
        return False
    return True


def _complete_lines(text: str) -> str:
    return text.rpartition("\n")[0] or text
