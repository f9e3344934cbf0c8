"""What `make data` says of a corpus, against the documents that it is bpe of."""

from pathlib import Path

import numpy as np
import pytest
from support.corpus import END_OF_TEXT, TextSource, write_tokens
from tokenizers import Tokenizer

from smollm.corpus import describe, tokenizer
from smollm.corpus.selection import Splitter
from smollm.errors import CorpusError
from smollm.state.tokens import STAGES, documents_of, open_split, open_tokenizer, token_directory, tokenizer_path

TEXTS = {f"data/raw/{'a' if n % 3 else 'b'}.jsonl#{n}": f"line {n} " * (1 + n % 7) for n in range(90)}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files of `TEXTS` for pretrain, and of a third of them for finetune."""
    root = tmp_path_factory.mktemp("workspace")
    bpe: Tokenizer = tokenizer.check(tokenizer.train(TEXTS.values(), 300, END_OF_TEXT), END_OF_TEXT, "tokenizer")
    tokenizer_path(root).parent.mkdir(parents=True)
    bpe.save(str(tokenizer_path(root)))
    splitter = Splitter(0.3)
    doubled = {**TEXTS, "data/raw/a.jsonl#90": "line 0 "}
    for stage, texts in (("pretrain", doubled), ("finetune", dict(list(TEXTS.items())[::3]))):
        write_tokens(token_directory(root, stage), TextSource(texts), bpe, splitter)
    return root


def directories(workspace: Path) -> dict[str, Path]:
    return {stage: token_directory(workspace, stage) for stage in STAGES}


def test_the_overview_counts_what_there_is(workspace: Path) -> None:
    table = describe.overview(directories(workspace))
    assert table["documents"].groupby(table["stage"]).sum().to_dict() == {"pretrain": 90, "finetune": 30}
    assert round(table["megabytes"].sum() * 1e6) == sum(map(len, TEXTS.values())) + sum(
        map(len, list(TEXTS.values())[::3])
    )
    lengths = describe.document_lengths(token_directory(workspace, "pretrain"), "train")
    row = table.iloc[0]
    assert (row["tokens"], row["longest_tokens"]) == (lengths.sum(), lengths.max())
    assert row["median_tokens"] == int(np.median(lengths))


def test_what_was_left_out_is_counted(workspace: Path) -> None:
    table = describe.left_out(directories(workspace)).set_index("stage")
    assert table["duplicates"].to_dict() == {"pretrain": 1, "finetune": 0}
    assert table["near_duplicates"].to_dict() == {"pretrain": 0, "finetune": 0}


def test_sources_are_files_with_their_share_of_the_tokens(workspace: Path) -> None:
    table = describe.sources(token_directory(workspace, "pretrain")).set_index("source")
    assert table["documents"].to_dict() == {"data/raw/a.jsonl": 60, "data/raw/b.jsonl": 30}
    assert list(table["tokens"]) == sorted(table["tokens"], reverse=True)
    assert round(sum(float(share.rstrip(" %")) for share in table["share"])) == 100


def test_many_sources_are_summed_up(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "_SOURCES", 1)
    table = describe.sources(token_directory(workspace, "pretrain"))
    assert list(table["source"]) == ["data/raw/a.jsonl", "1 others"]
    assert table["documents"].sum() == 90


def test_documents_are_shown_as_the_tokens_have_them(workspace: Path) -> None:
    for directory in directories(workspace).values():
        for split in ("train", "validation"):
            ids = open_split(directory, split)
            _, keys = documents_of(directory, split)
            shown = list(describe.examples(workspace, directory, split, 1, 3))
            assert len(shown) == 3
            assert {text.removesuffix(END_OF_TEXT) for _, text in shown} <= {TEXTS[key] for key in keys if key in TEXTS}
            for place, text in shown:
                tokens = ids[place : place + len(text)].tolist()
                tokenizer = open_tokenizer(tokenizer_path(workspace))
                assert tokenizer.decode(tokens, skip_special_tokens=False).startswith(text)


def test_the_text_and_the_picture_are_the_same_each_time(workspace: Path, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        describe.draw_lengths(tmp_path / name, directories(workspace))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert describe.describe(workspace) == describe.describe(workspace)
    assert describe.describe(workspace, seed=1) != describe.describe(workspace)


def test_no_token_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"must hold what `tokenize` writes, got no manifest\.json"):
        describe.describe(tmp_path)
