"""A held-out text of a few documents, as tokenize would have written it, without a corpus."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from smollm.config.evaluate import EvaluateConfig
from smollm.evaluate.text import HeldOutText
from smollm.state.tokens import TRAIN, manifest_path, token_directory, tokens_path

SETTINGS = EvaluateConfig(
    held_out_tokens=10_000,
    sequence_length=None,
    samples=3,
    prompt_tokens=4,
    sample_tokens=8,
    temperature=1.0,
    top_k=5,
    tasks=(),
    task_examples=None,
)

DOCUMENTS = {
    "one/a.py": "the cat sat on the mat, and the dog sat on the cat\n" * 4,
    "one/b.py": "10 cats and 20 dogs\n" * 5,
    "two/c.py": "the end of the mat: x = 1\n" * 6,
}


def held_out(tokenizer: Tokenizer, documents: dict[str, str] = DOCUMENTS, source: str = "python") -> HeldOutText:
    """The text of the documents, each of which ends with the end-of-text token (id 0)."""
    encoded = [[*tokenizer.encode(text).ids, 0] for text in documents.values()]
    offsets = np.cumsum([0, *map(len, encoded)])[:-1]
    tokens = np.array([id for ids in encoded for id in ids], np.uint16)
    return HeldOutText("pretrain", tokens, offsets, list(documents), source)


def write_training_text(workspace: Path, stage: str, tokenizer: Tokenizer, texts: list[str]) -> None:
    """The token file and the manifest of a stage's training text."""
    directory = token_directory(workspace, stage)
    directory.mkdir(parents=True)
    ids = [id for text in texts for id in [*tokenizer.encode(text).ids, 0]]
    np.array(ids, np.uint16).tofile(tokens_path(directory, TRAIN))
    manifest_path(directory).write_text('{"dtype": "uint16"}')
