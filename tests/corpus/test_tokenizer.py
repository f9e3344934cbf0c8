"""Training a byte-level BPE, and which tokenizers are refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.corpus import POINTER
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from smollm.config.tokenizer import TokenizerConfig, TokenizerSource
from smollm.corpus.tokenizer import check, load, obtain, train
from smollm.errors import CorpusError

END = "<|endoftext|>"
DOCUMENTS = [
    "the cat sat on the mat, the dog ran to the mat\n" * 5,
    "def add(one, other):\n    return one + other\n" * 5,
]

TEXTS = {
    "plain": "the cat sat on the mat",
    "emoji": "a 🐈‍⬛ and a 👩🏽‍🚀",
    "cjk": "猫は敷物の上に座った。고양이",
    "tabs and line ends": "\tif x:\r\n\t\treturn\n\n\n",
    "spaces": "   leading,  double   triple and trailing  ",
    "digits": "3.14159 and 2024",
    "combining": "e\u0301 against é",
    "controls": "\x00\x01\x7f\u200b\ufeff\u2028",
    "special token": f"before {END} after{END}{END}",
    "empty": "",
}


def config(source: TokenizerSource, vocab_size: int = 320, file: str | None = None) -> TokenizerConfig:
    return TokenizerConfig(source, vocab_size, 0, 1.0, END, file, None, None)


def one_line(caught: pytest.ExceptionInfo[CorpusError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_training_gives_the_vocabulary_asked_for() -> None:
    tokenizer = train(DOCUMENTS, 280, END)
    assert tokenizer.get_vocab_size(with_added_tokens=True) == 280
    assert sorted(tokenizer.get_vocab().values()) == list(range(280))
    assert tokenizer.token_to_id(END) == 0


def test_merges_are_learned_from_the_documents() -> None:
    tokenizer = train(DOCUMENTS, 400, END)
    assert len(tokenizer.encode("the mat").ids) == 2
    assert len(tokenizer.encode("xqzkwj").ids) == 6


def test_pairs_that_are_too_rare_become_no_token() -> None:
    tokenizer = train(["ab " * 20 + "cd " * 10], 400, END, min_frequency=15)
    assert len(tokenizer.encode("ab").ids) == 1
    assert len(tokenizer.encode("cd").ids) == 2


def test_digits_are_apart() -> None:
    tokenizer = train(["2024 2024 2024 2024\n" * 20], 400, END)
    assert len(tokenizer.encode("2024").ids) == 4


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one_that_works() -> None:
    tokenizer = obtain(config(TokenizerSource.TRAIN, vocab_size=49152), DOCUMENTS, Path())
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    assert 257 < size < 1000
    for text in TEXTS.values():
        ids = tokenizer.encode(text).ids
        assert max(ids, default=0) < size
        assert tokenizer.decode(ids) == text


def test_the_smallest_vocabulary_is_the_bytes_and_the_end_of_text() -> None:
    tokenizer = obtain(config(TokenizerSource.TRAIN, vocab_size=257), DOCUMENTS, Path())
    assert tokenizer.get_vocab_size(with_added_tokens=True) == 257
    assert len(tokenizer.encode("the cat").ids) == 7


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert train(DOCUMENTS, 350, END).to_str() == train(iter(DOCUMENTS), 350, END).to_str()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_every_text_survives_encoding_and_decoding(text: str) -> None:
    tokenizer = obtain(config(TokenizerSource.TRAIN), DOCUMENTS, Path())
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_in_a_text_are_encoded_as_plain_text() -> None:
    tokenizer = obtain(config(TokenizerSource.TRAIN), [*DOCUMENTS, f"{END} " * 100], Path())
    text = f"{END}x{END}"
    for encoding in (tokenizer.encode(text), *tokenizer.encode_batch_fast([text, text], add_special_tokens=False)):
        assert 0 not in encoding.ids
        assert tokenizer.decode(encoding.ids) == text


def test_an_end_of_text_token_that_a_text_can_spell_is_refused_or_never_spelled() -> None:
    # to the pre-tokenizer ### is one word, whose merges would end in the special token's own name
    try:
        tokenizer = check(train(["### heading ###\n"] * 50, 400, "###"), "###", "tokenizer")
    except CorpusError as error:
        assert "###" in str(error)
    else:
        assert tokenizer.token_to_id("###") not in tokenizer.encode("### heading ###").ids


def test_a_tokenizer_file_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    trained = obtain(config(TokenizerSource.TRAIN), DOCUMENTS, tmp_path)
    trained.save(str(tmp_path / "tokenizer.json"))
    loaded = obtain(config(TokenizerSource.FILE, file="tokenizer.json"), [], tmp_path)
    for text in TEXTS.values():
        assert loaded.encode(text).ids == trained.encode(text).ids


def test_a_file_that_truncates_and_pads_does_so_no_more(tmp_path: Path) -> None:
    tokenizer = train(DOCUMENTS, 280, END)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load(tmp_path / "tokenizer.json", END)
    assert loaded.decode(loaded.encode("the cat sat on the mat").ids) == "the cat sat on the mat"
    assert len(loaded.encode("x").ids) == 1


FOREIGN = {
    "empty": b"",
    "text": b"not a tokenizer\nat all\n",
    "json": json.dumps({"model": {"type": "BPE"}}, indent=2).encode(),
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(file))}: must be a tokenizer\.json, got: ") as caught:
        load(file, END)
    one_line(caught)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=re.escape(str(tmp_path / "none.json"))) as caught:
        load(tmp_path / "none.json", END)
    one_line(caught)


def test_a_git_lfs_pointer_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(CorpusError, match=r"must hold the content itself, got a Git LFS .*`git lfs pull`") as caught:
        load(tmp_path / "tokenizer.json", END)
    one_line(caught)


def test_a_tokenizer_without_the_end_of_text_token_is_refused() -> None:
    with pytest.raises(CorpusError) as caught:
        check(train(DOCUMENTS, 300, "</s>"), END, "mine.json")
    assert one_line(caught) == (
        "mine.json: must know the end-of-text token '<|endoftext|>', got a vocabulary without it; "
        "set tokenizer.end_of_text to its name there"
    )


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(DOCUMENTS, trainers.BpeTrainer(special_tokens=[END], show_progress=False))
    return tokenizer


def without_decoder() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=END))
    tokenizer.train_from_iterator(DOCUMENTS, trainers.WordLevelTrainer(special_tokens=[END], show_progress=False))
    return tokenizer


def lowercasing() -> Tokenizer:
    tokenizer = train(DOCUMENTS, 280, END)
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def without_all_bytes() -> Tokenizer:
    """Trained without the alphabet: bytes that its text did not have vanish from every other."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(DOCUMENTS, trainers.BpeTrainer(special_tokens=[END], show_progress=False))
    assert tokenizer.decode(tokenizer.encode("the 猫").ids) == "the "
    return tokenizer


def prefixing() -> Tokenizer:
    """Puts a space before each text, a byte that the text does not have."""
    tokenizer = train(DOCUMENTS, 280, END)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokenizer.decode(tokenizer.encode("mat").ids) == " mat"
    return tokenizer


@pytest.mark.parametrize("build", [metaspace, without_decoder, lowercasing, without_all_bytes, prefixing])
def test_a_tokenizer_that_changes_the_bytes_of_a_text_is_refused(build: Callable[[], Tokenizer]) -> None:
    with pytest.raises(CorpusError, match=r"^mine\.json: must be byte-level") as caught:
        check(build(), END, "mine.json")
    one_line(caught)


def test_a_tokenizer_that_lacks_only_bytes_no_text_has_is_accepted() -> None:
    # as many on the hub do, ModernBERT's for one: UTF-8 has no use for the bytes C0, C1 and F5 to FF
    never = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}  # their names in byte-level BPE
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - never)
    assert len(alphabet) == 243
    trainer = trainers.BpeTrainer(special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    check(tokenizer, END, "mine.json")
    for text in (*TEXTS.values(), "\u07ff\u0800\uffff\U00010000\U0010ffff"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("kind", ["smollm", "llama3"])
def test_ids_are_those_of_transformers_with_the_same_file(kind: str, tmp_path: Path) -> None:
    bpe = train([*TEXTS.values(), Path(__file__).read_text()], 600, END)
    if kind == "llama3":
        words = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+"), "isolated")
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.save(str(tmp_path / "tokenizer.json"))
    ours = load(tmp_path / "tokenizer.json", END)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for name, text in {**TEXTS, "file": Path(__file__).read_text()}.items():
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text, add_special_tokens=False).ids == expected, name
