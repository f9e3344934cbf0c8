"""The report on a step that failed: each sequence with the text that it is from."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from support.corpus import END_OF_TEXT
from support.trainers import TrainerFactory
from tokenizers import Tokenizer

from smollm.state.files import write_json
from smollm.state.tokens import BY_DOCUMENT, Tokens, token_directory
from smollm.training import failure
from smollm.training.batches import Batches, Replay
from smollm.training.failure import measure_sequences

DOCUMENTS = {"finetune": "the cat sat on the mat\n", "pretrain": "10 dogs and 20 dogs\n"}
"""Each stage's text is fifty times the same."""


def write_tokens(workspace: Path, stage: str, tokenizer: Tokenizer) -> Tokens:
    """Write what `tokenize` does about the documents of a stage; return its tokens to train on."""
    directory = token_directory(workspace, stage)
    directory.mkdir(parents=True)
    ids = [*tokenizer.encode(DOCUMENTS[stage]).ids, 0]
    (np.arange(50) * len(ids)).astype(np.uint64).tofile(directory / "train.offsets.bin")
    table = pd.DataFrame({"split": "train", "key": [f"{stage} {number}" for number in range(50)]})
    table.to_csv(directory / "documents.tsv", sep="\t", index=False)
    write_json(directory / "manifest.json", {"split": BY_DOCUMENT})
    return np.array(ids * 50, np.uint16)


def test_a_replayed_sequence_is_shown_with_the_other_stages_text_and_documents(
    trainers: TrainerFactory, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokens = {stage: write_tokens(tmp_path, stage, tokenizer) for stage in DOCUMENTS}
    batches = Batches(tokens["finetune"], 4, 16, 1, "finetune", Replay("pretrain", tokens["pretrain"], 0.5))
    sequences = measure_sequences(trainers(tmp_path / "trainer").model, batches, 3, trainers.hardware)
    failure.write(tmp_path / "failure.json", {"step": 3, "sequences": sequences}, batches, tmp_path, tokenizer)
    shown = json.loads((tmp_path / "failure.json").read_text())["sequences"]
    assert [sequence["text_of"] for sequence in shown] == ["finetune", "finetune", "pretrain", "pretrain"]
    for sequence, inputs in zip(shown, batches(3)[0], strict=True):
        stage = sequence["text_of"]
        assert sequence["text"].startswith(tokenizer.decode(inputs.tolist(), skip_special_tokens=False))
        first = sequence["first_token"] * 50 // len(tokens[stage])
        count = 1 + sequence["text"][:-1].count(END_OF_TEXT)
        assert sequence["documents"] == [f"{stage} {number % 50}" for number in range(first, first + count)]
