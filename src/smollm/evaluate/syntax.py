"""Whether a text that may end anywhere is Python as far as it goes."""

import ast
import warnings

_INCOMPLETE = ast.PyCF_ALLOW_INCOMPLETE_INPUT if hasattr(ast, "PyCF_ALLOW_INCOMPLETE_INPUT") else 0x4000
"""Has Python's parser tell a text that ends too soon from one that is wrong, as the interactive prompt does."""


def is_accepted(text: str) -> bool:
    """Whether `ast.parse` accepts the complete lines of `text`, or finds nothing wrong but that they end too soon."""
    lines = text.rpartition("\n")[0] or text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(lines + "\n", "sample", "exec", ast.PyCF_ONLY_AST | _INCOMPLETE)
    except SyntaxError as error:
        return "incomplete input" in str(error)
    except (ValueError, RecursionError, MemoryError):  # a null byte, or nested too deeply
        return False
    return True
