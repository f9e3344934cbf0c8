"""Samples beside held-out text: where they begin, what they share with the training text, whether they are Python."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.held_out import DOCUMENTS, SETTINGS, held_out, write_training_text
from tokenizers import Tokenizer

from smollm.config.model import ModelConfig
from smollm.device.hardware import Hardware
from smollm.errors import CorpusError
from smollm.evaluate import memory, samples
from smollm.evaluate.syntax import has_code, is_accepted
from smollm.evaluate.text import TEXTS
from smollm.model.llama import LlamaForCausalLM


def test_prompts_begin_where_documents_do_and_only_then_inside(tokenizer: Tokenizer) -> None:
    text = held_out(tokenizer)
    assert samples.places(text, SETTINGS) == list(enumerate(text.offsets.tolist()))
    more = samples.places(text, replace(SETTINGS, samples=6))
    assert more[:3] == list(enumerate(text.offsets.tolist()))
    for document, begin in more:
        assert begin + 12 <= text.offsets[document] + text.lengths[document], "the end of a document is not crossed"
    assert len(set(more)) == 6


def test_documents_that_are_too_short_are_named_in_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(CorpusError, match=r"evaluate.sample_tokens must leave .* \(9996 tokens\), got \d+ tokens"):
        samples.places(held_out(tokenizer), replace(SETTINGS, sample_tokens=9992))


def test_a_sample_continues_the_document_and_is_the_same_each_time(
    model_config: ModelConfig, tokenizer: Tokenizer, cpu: Hardware
) -> None:
    torch.manual_seed(0)
    model, text = LlamaForCausalLM(model_config), held_out(tokenizer)
    drawn = samples.draw(model, tokenizer, text, SETTINGS, cpu, seed=1)
    assert drawn == samples.draw(model, tokenizer, text, SETTINGS, cpu, seed=1)
    assert drawn != samples.draw(model, tokenizer, text, SETTINGS, cpu, seed=2)
    for sample, (name, whole) in zip(drawn, DOCUMENTS.items(), strict=True):
        assert sample["document"] == name
        assert whole.startswith(sample["prompt"] + sample["reference"])
    json.dumps(drawn)


def test_the_longest_run_is_found_in_either_stages_text_in_tokens_and_characters(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_training_text(tmp_path, "pretrain", tokenizer, ["a cat sat on the mat today", "zzz"])
    write_training_text(tmp_path, "finetune", tokenizer, ["20 dogs and the end of the mat: café"])
    texts = ["12 cat sat on the mat!", "the end of the mat: café au lait", "!?"]
    found = {name: memory.compare(tmp_path, name, texts, tokenizer, lambda count: None) for name in TEXTS}
    rows = memory.merged(texts, found)
    assert [row["stage"] for row in rows[:2]] == ["pretrain", "finetune"]
    assert [row["characters"] for row in rows] == [len(" cat sat on the mat"), len("the end of the mat: café"), 0]
    assert rows[0]["text"] == " cat sat on the mat"
    assert rows[0]["tokens"] == len(tokenizer.encode(" cat sat on the mat").ids)
    assert memory.statistics(rows)["longest_characters"] == 24


def test_no_run_crosses_the_end_of_a_document(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in TEXTS:
        write_training_text(tmp_path, name, tokenizer, ["the cat", "the dog"])
    found = {name: memory.compare(tmp_path, name, ["the catthe dog"], tokenizer, lambda count: None) for name in TEXTS}
    assert memory.merged(["the catthe dog"], found)[0]["characters"] == len("the cat")


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("def f(x):\n    return x\n", True),
        ("def f(x):\n    if x:\n        retu", True),
        ("x = [1,\n     2,\n", True),
        ('"""A docstring\nthat goes on', True),
        ("x = 1\ny = = 2\nz = 3\n", False),
        ("x = {\n    1: 2,\n]\n", False),
        ("import os\nfoo bar\nx = 1\n", False),
        ("x = 1\n\0\ny = 2\n", False),
    ],
)
def test_python_may_end_too_soon_but_not_be_wrong_before(text: str, accepted: bool) -> None:
    assert is_accepted(text) is accepted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Copyright\n# of nobody\nimpo", False),
        ('"""A docstring\nx = = 1\nthat goes on\n', False),
        ('"""A docstring."""\nimport os\n', True),
        ("x = = 1\n", True),
        ("", False),
    ],
)
def test_a_text_that_is_still_in_its_first_docstring_says_nothing_about_syntax(text: str, expected: bool) -> None:
    assert has_code(text) is expected
