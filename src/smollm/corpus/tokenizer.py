"""Trains or loads a byte-level BPE tokenizer, and checks that the pipeline can use it."""

import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from smollm.config.tokenizer import TokenizerConfig, TokenizerSource
from smollm.corpus.text_files import check_is_content
from smollm.errors import CorpusError
from smollm.state.tokens import as_plain_text


def train(documents: Iterable[str], vocab_size: int, end_of_text: str, min_frequency: int = 0) -> Tokenizer:
    """Train a byte-level BPE tokenizer like SmolLM's: single digits, GPT-2's word pattern.

    Args:
        documents: the text to train on.
        vocab_size: upper limit; a small text may yield fewer tokens.
        end_of_text: the only special token, id 0.
        min_frequency: how often a pair must occur to be merged.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[end_of_text],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def obtain(config: TokenizerConfig, documents: Iterable[str], workspace: Path) -> Tokenizer:
    """The tokenizer that `config` asks for, after `check`.

    Raises:
        CorpusError: it cannot be loaded, or is not byte-level BPE with an end-of-text token.
    """
    if config.source is TokenizerSource.TRAIN:
        tokenizer = train(documents, config.vocab_size, config.end_of_text, config.min_frequency)
        return check(tokenizer, config.end_of_text, "tokenizer")
    if config.source is TokenizerSource.FILE:
        assert config.file is not None
        return load(workspace / config.file, config.end_of_text)
    assert config.repository is not None and config.revision is not None
    try:
        tokenizer = Tokenizer.from_pretrained(config.repository, revision=config.revision)
    except Exception as error:  # the hub client's errors have no common base
        raise CorpusError(
            f"params.yaml: tokenizer.repository must be a reachable repository of the hub, "
            f"got {config.repository!r}: {str(error).splitlines()[0]}; check the name, the revision and the network, "
            "and for a gated or private one log in with `hf auth login`, or set HF_TOKEN"
        ) from None
    return check(tokenizer, config.end_of_text, config.repository)


def load(path: Path, end_of_text: str) -> Tokenizer:
    """Read and check a tokenizer.json.

    Raises:
        CorpusError: there is no such file, or the pipeline cannot use the tokenizer.
    """
    if path.is_file():
        check_is_content(path, str(path))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CorpusError(f"{path}: must be a tokenizer.json, got: {error}; write one with `tokenizers`") from None
    return check(tokenizer, end_of_text, str(path))


def check(tokenizer: Tokenizer, end_of_text: str, name: str) -> Tokenizer:
    """Refuse a tokenizer that the pipeline cannot use; one that passes treats special tokens in a text as plain text.

    Raises:
        CorpusError: it has no end-of-text token, changes a text, or can encode a text as the end-of-text token.
    """
    if tokenizer.token_to_id(end_of_text) is None:
        raise CorpusError(
            f"{name}: must know the end-of-text token {end_of_text!r}, got a vocabulary without it; "
            "set tokenizer.end_of_text to its name there"
        )
    as_plain_text(tokenizer)
    if not _keeps_every_byte(tokenizer):
        raise CorpusError(
            f"{name}: must be byte-level, so that every text can be encoded and its bytes counted, "
            f"got one that changes a text or lacks some bytes (decoder {type(tokenizer.decoder).__name__}); "
            "use a byte-level BPE tokenizer"
        )
    spellings = (end_of_text, f"a {end_of_text} b", f"\n{end_of_text}\n", f"{end_of_text}{end_of_text}")
    end = tokenizer.token_to_id(end_of_text)
    if any(end in tokenizer.encode(text, add_special_tokens=False).ids for text in spellings):
        raise CorpusError(
            f"{name}: must never encode plain text as the end-of-text token, got {end_of_text!r}, which a text "
            "can spell; choose another tokenizer.end_of_text"
        )
    return tokenizer


def _keeps_every_byte(tokenizer: Tokenizer) -> bool:
    """Whether decoding gives back the text that was encoded.

    Tried with all of ASCII; some tokenizers in use lack bytes of rare characters.
    """
    if not isinstance(tokenizer.decoder, decoders.ByteLevel) or tokenizer.normalizer is not None:
        return False
    probe = f"{string.printable}  é"
    ids = tokenizer.encode(probe, add_special_tokens=False).ids
    return bool(tokenizer.decode(ids, skip_special_tokens=False) == probe)
