"""Bits per byte of held-out text, by source and by position: against the plain definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.held_out import held_out
from tokenizers import Tokenizer
from torch.nn import functional

from smollm.config.model import ModelConfig
from smollm.device.hardware import Hardware
from smollm.errors import CorpusError
from smollm.evaluate.held_out import measure
from smollm.evaluate.text import NO_TEXT, bytes_of_tokens
from smollm.model.llama import LlamaForCausalLM
from smollm.state.tokens import token_bytes


@pytest.fixture
def model(model_config: ModelConfig) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(model_config)


def test_all_three_views_are_of_the_same_losses(model: LlamaForCausalLM, tokenizer: Tokenizer, cpu: Hardware) -> None:
    text, sizes = held_out(tokenizer), token_bytes(tokenizer)
    done: list[tuple[int, int]] = []
    result = measure(model, text, sizes, 16, 10_000, cpu, lambda *counts: done.append(counts))
    windows = (len(text.tokens) - 1) // 16
    ids = torch.from_numpy(text.tokens[: windows * 16 + 1].astype(np.int64))
    inputs, targets = ids[:-1].view(windows, 16), ids[1:].view(windows, 16)
    with torch.no_grad():
        losses = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none").double()
    size = int(sizes[targets.numpy()].sum())
    assert (result["tokens"], result["bytes"]) == (windows * 16, size)
    assert result["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(losses.sum().item() / math.log(2) / size, rel=1e-6)
    for rows in (result["sources"], result["positions"]):
        assert sum(row["bytes"] for row in rows) == size
        total = sum(row["bits_per_byte"] * row["bytes"] for row in rows)
        assert total == pytest.approx(result["bits_per_byte"] * size, rel=1e-9)
    assert [(row["first"], row["last"]) for row in result["positions"]] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16)]
    first = losses.view(windows, 16)[:, 0]
    assert result["positions"][0]["loss"] == pytest.approx(first.mean().item(), rel=1e-6)
    assert {row["source"] for row in result["sources"]} == {"one", "two"}
    two = losses[np.searchsorted(text.offsets, np.arange(1, windows * 16 + 1), side="right") - 1 == 2]
    (row,) = (row for row in result["sources"] if row["source"] == "two")
    assert row["loss"] == pytest.approx(two.mean().item(), rel=1e-6)
    assert sum(count for count, _ in done) == windows


def test_fewer_tokens_than_there_are_come_from_all_of_the_text(tokenizer: Tokenizer) -> None:
    text = held_out(tokenizer)
    starts = text.windows(16, 4 * 16)
    assert len(starts) == 4
    assert starts[0] == 0 and starts[-1] > len(text.tokens) / 2
    with pytest.raises(CorpusError, match=r"data/tokens/pretrain/validation.bin: must hold \d+ tokens, got"):
        text.windows(len(text.tokens), 16)


def test_the_source_of_a_row_is_its_file(tokenizer: Tokenizer) -> None:
    text = held_out(
        tokenizer, {"data/raw/a.jsonl#0": "cat", "data/raw/a.jsonl#7": "dog", "data/raw/b.txt": "mat"}, "files"
    )
    names, numbers = text.sources()
    assert [names[number] for number in numbers] == ["data/raw/a.jsonl", "data/raw/a.jsonl", "data/raw/b.txt"]


def test_python_files_are_code_and_documentation_is_not(tokenizer: Tokenizer) -> None:
    assert held_out(tokenizer).is_code
    assert not any(replace(held_out(tokenizer), source=kind).is_code for kind in ("python-docs", "files", "hub"))


def test_the_bytes_of_the_tokens_of_a_text_are_the_text(tokenizer: Tokenizer) -> None:
    texts = bytes_of_tokens(tokenizer)
    text = "the cat\t\x7f é 猫 🐈 ￿ end\n"
    assert b"".join(texts[id] for id in tokenizer.encode(text).ids) == text.encode()
    assert texts[0] == NO_TEXT
