"""Documents, and the parts that long ones are encoded in."""

import hashlib
import random
import sysconfig
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from smollm.corpus import tokenizer
from smollm.corpus.document import Document, in_parts

CODE = "\n".join(path.read_text() for path in sorted(Path(sysconfig.get_paths()["stdlib"], "json").glob("*.py")))
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How tokenizers in the manner of Llama 3 and GPT-4 split words."""


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
    """A tokenizer learned from `CODE`; like SmolLM's, or with another `pre_tokenizer`."""
    if pre_tokenizer is None:
        return tokenizer.train([CODE], 1000, "<|endoftext|>")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    from tokenizers import trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([CODE], trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet))
    return bpe


GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The same of GPT-4o."""


def words(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


SPLITS = {
    "smollm": None,
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": words(LLAMA_3),
    "gpt4o": words(GPT_4O),
}


@pytest.mark.parametrize("name", SPLITS)
def test_parts_encode_to_the_ids_of_the_whole(name: str) -> None:
    bpe = trained(SPLITS[name])
    rng = random.Random(1)
    pieces = [
        "word",
        "don't",
        "12",
        "3.14",
        "é",
        "😀",
        "漢字",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "(",
        ")",
        ";",
        "#",
    ]
    noise = "".join(rng.choice(pieces) for _ in range(20_000))
    comments = "".join(f"x[{n}] = {{{n}}};\n// {n}\n////\n" for n in range(2000))
    chinese = "".join("漢字文" * rng.randrange(1, 60) + rng.choice(["\n\n", "\r\n", "。\n"]) for _ in range(300))
    table = "".join(f"{n * 7919}\t{n}\n" for n in range(3000))
    for text in (CODE, noise, CODE.replace("\n", " "), CODE.replace("\n", "\r\n"), comments, chinese, table):
        parts = list(in_parts([text], 500))
        assert len(parts) > 5
        assert "".join(parts) == text
        ids = [id for part in parts for id in bpe.encode(part, add_special_tokens=False).ids]
        assert ids == bpe.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("most", [1, 7, 100, 10_000_000])
def test_no_part_is_longer_than_asked_and_none_is_empty(most: int) -> None:
    chunks = [CODE[start : start + 333] for start in range(0, len(CODE), 333)]
    parts = list(in_parts(chunks, most))
    assert "".join(parts) == CODE
    assert all(0 < len(part) <= most for part in parts)


def test_text_without_a_place_to_cut_is_cut_all_the_same() -> None:
    assert [len(part) for part in in_parts(["x" * 25], 10)] == [10, 10, 5]


def test_a_document_knows_size_and_digest_of_its_text() -> None:
    document = Document.of("a", "héllo\0 \n")
    assert (document.size, document.text, document.is_blank) == (9, "héllo\0 \n", False)
    assert document.sha256 == hashlib.sha256("héllo\0 \n".encode()).hexdigest()


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000"])
def test_white_space_alone_is_blank(text: str) -> None:
    assert Document.of("a", text).is_blank


def test_half_a_utf16_pair_becomes_the_replacement_character_and_a_whole_one_its_character() -> None:
    assert Document.of("a", "x\ud83dy").text == "x\ufffdy"
    assert Document.of("a", "\ud83d\ude00").text == "😀"
