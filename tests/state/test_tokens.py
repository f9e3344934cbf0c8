"""Token files, their ids' type, and the bytes that each token stands for."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from smollm.errors import CorpusError
from smollm.state.files import write_json
from smollm.state.tokens import (
    as_plain_text,
    open_tokenizer,
    open_tokens,
    read_manifest,
    source_of,
    token_bytes,
    token_dtype,
)

TEXTS = [
    "the cat sat on the mat",
    "a 🐈‍⬛ and a 👩🏽‍🚀",
    "猫は敷物の上に座った。",
    "\tif x:\r\n\t\treturn 2024\n",
    "é against e\u0301, \x00 and \ufeff",
    "<|endoftext|>",
    "",
]


@pytest.mark.parametrize(
    ("vocab_size", "expected"),
    [(257, np.uint16), (49152, np.uint16), (65536, np.uint16), (65537, np.uint32), (200_000, np.uint32)],
)
def test_ids_are_stored_in_the_smallest_type_that_holds_them(vocab_size: int, expected: type) -> None:
    assert token_dtype(vocab_size) is expected
    assert np.iinfo(expected).max >= vocab_size - 1


def test_token_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"must hold what `tokenize` writes, got no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("kind", "key", "source"),
    [
        ("python", "numpy/linalg/linalg.py", "numpy"),
        ("python-docs", "tqdm", "tqdm"),
        ("files", "data/raw/a.jsonl#17", "data/raw/a.jsonl"),
        ("files", "data/raw/C#.txt", "data/raw/C#.txt"),
        ("files", "data/raw/C#.csv#0", "data/raw/C#.csv"),
        ("hub", "owner/set#3", "owner/set"),
    ],
)
def test_a_document_is_from_a_package_a_file_or_a_dataset(kind: str, key: str, source: str) -> None:
    assert source_of(key, kind) == source


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_token_file_is_read_as_it_was_written(tmp_path: Path, dtype: str) -> None:
    ids = np.array([0, 1, 65535, 7], dtype)
    ids.tofile(tmp_path / "train.bin")
    tokens = open_tokens(tmp_path / "train.bin", dtype)
    assert tokens.dtype == dtype
    assert np.array_equal(tokens, ids)


def test_a_token_file_is_mapped_read_only(tmp_path: Path) -> None:
    np.arange(4, dtype=np.uint16).tofile(tmp_path / "train.bin")
    tokens = open_tokens(tmp_path / "train.bin", "uint16")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_an_empty_token_file_holds_no_tokens(tmp_path: Path) -> None:
    (tmp_path / "validation.bin").touch()
    tokens = open_tokens(tmp_path / "validation.bin", "uint32")
    assert len(tokens) == 0
    assert tokens.dtype == np.uint32


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = {"source": "files", "dtype": "uint16", "train": {"documents": 2, "name": "größe 猫"}}
    write_json(tmp_path / "manifest.json", values)
    assert read_manifest(tmp_path) == values


def test_a_saved_tokenizer_takes_special_tokens_in_a_text_for_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert 0 in Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a<|endoftext|>b").ids
    opened = open_tokenizer(tmp_path / "tokenizer.json")
    ids = opened.encode("a<|endoftext|>b").ids
    assert 0 not in ids
    assert opened.decode(ids) == "a<|endoftext|>b"


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_texts_tokens_add_up_to_its_utf8_length(tokenizer: Tokenizer, text: str) -> None:
    assert token_bytes(tokenizer)[tokenizer.encode(text).ids].sum() == len(text.encode())


def test_the_end_of_text_stands_for_no_bytes_and_every_other_token_for_some(tokenizer: Tokenizer) -> None:
    sizes = token_bytes(tokenizer)
    assert sizes.shape == (275,)
    assert sizes[0] == 0
    assert (sizes[1:] > 0).all()


@pytest.mark.parametrize("added", ["    ", "猫"])
def test_tokens_added_for_plain_text_stand_for_their_bytes(tokenizer: Tokenizer, added: str) -> None:
    # as in phi's tokenizer, whose runs of spaces are added tokens, but not special ones
    with_more = Tokenizer.from_str(tokenizer.to_str())
    with_more.add_tokens([AddedToken(added, special=False, normalized=False)])
    as_plain_text(with_more)
    text = f"if x:\n{added}return"
    ids = with_more.encode(text).ids
    assert with_more.token_to_id(added) in ids
    assert token_bytes(with_more)[ids].sum() == len(text.encode())
