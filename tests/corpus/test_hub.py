"""Text and tokenizers of the Hugging Face hub, by its client libraries, from a server that speaks as the hub does."""

import json
import subprocess
from pathlib import Path

import pytest
from support.clone import Clone
from support.servers import COMMIT, hub

from smollm.corpus import tokenizer

TEXTS = [f"row {n}: the quick brown fox jumps over {n * 7919} lazy dogs\n" * 3 for n in range(600)]
SECRET = "hf_" + "OneTwo" * 6
DATASET = {"source": "hub", "text_column": "content"}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two files, and a tokenizer."""
    root = tmp_path_factory.mktemp("hub")
    data = root / "datasets" / "acme" / "texts" / "data"
    data.mkdir(parents=True)
    for part in range(2):
        rows = TEXTS[part::2]
        (data / f"train-{part:05}.jsonl").write_text("".join(json.dumps({"content": row}) + "\n" for row in rows))
    model = root / "models" / "acme" / "words"
    model.mkdir(parents=True)
    tokenizer.train(TEXTS, 500, "<end>").save(str(model / "tokenizer.json"))
    return root


def clone(tmp_path: Path, **hub_settings: object) -> Clone:
    project = Clone.of_working_tree(tmp_path / "project")
    settings: dict[str, object] = {}
    for stage in ("pretrain", "finetune"):
        settings |= {f"corpus.{stage}.{name}": value for name, value in DATASET.items()}
        values = {"dataset": "acme/texts", "revision": COMMIT, **hub_settings}
        settings |= {f"corpus.{stage}.hub.{name}": value for name, value in values.items()}
    project.set(settings)
    return project


def home(tmp_path: Path) -> dict[str, str]:
    """Away from what the user has downloaded, and from their token."""
    return {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN_PATH": str(tmp_path / "none")}


@pytest.mark.parametrize("streaming", [True, False], ids=["streamed", "downloaded"])
def test_a_dataset_and_a_tokenizer_of_the_hub_are_read_at_their_revision(
    streaming: bool, repositories: Path, tmp_path: Path
) -> None:
    project = clone(tmp_path, streaming=streaming)
    project.set(
        {
            "tokenizer.source": "hub",
            "tokenizer.repository": "acme/words",
            "tokenizer.revision": COMMIT,
            "tokenizer.end_of_text": "<end>",
            "corpus.max_documents": 500,
        }
    )
    with hub(repositories) as server:
        project.dvc("repro", "tokenize", **server.environment, **home(tmp_path))
        asked = set(server.requests)
    assert f"GET /datasets/acme/texts/resolve/{COMMIT}/data/train-00001.jsonl" in asked
    assert f"GET /acme/words/resolve/{COMMIT}/tokenizer.json" in asked
    manifest = project.json("data/tokens/pretrain/manifest.json")
    assert manifest["versions"] == {"acme/texts": COMMIT}
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] == 500
    expected = TEXTS[0::2] + TEXTS[1::2]
    assert manifest["train"]["bytes"] + manifest["validation"]["bytes"] == sum(map(len, expected[:500]))
    kept = project.json("data/tokenizer/tokenizer.json")["model"]["vocab"]
    assert kept == json.loads((repositories / "models/acme/words/tokenizer.json").read_text())["model"]["vocab"]


def test_a_gated_dataset_wants_the_users_token_which_is_written_nowhere(repositories: Path, tmp_path: Path) -> None:
    project = clone(tmp_path)
    with hub(repositories, token=SECRET) as server:
        refused = project.dvc("repro", "tokenize", check=False, **server.environment, **home(tmp_path))
        (line,) = [
            line for line in refused.stdout.splitlines() if line.startswith("ERROR: ") and "failed to" not in line
        ]
        assert "corpus.pretrain.hub.dataset must be a dataset that can be reached, got 'acme/texts': " in line
        assert "gated" in line
        assert line.endswith("for a gated or private one log in with `hf auth login`, or set HF_TOKEN")
        assert "Traceback" not in refused.stdout
        allowed = project.dvc("repro", "tokenize", HF_TOKEN=SECRET, **server.environment, **home(tmp_path))
        assert server.tokens == {None, f"Bearer {SECRET}"}
    assert project.json("data/tokens/pretrain/manifest.json")["train"]["documents"] > 500
    assert SECRET not in allowed.stdout
    for path in project.directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert SECRET.encode() not in path.read_bytes(), path


def test_a_revision_or_a_dataset_that_is_not_there_is_one_line(repositories: Path, tmp_path: Path) -> None:
    project = clone(tmp_path, revision="f" * 40)
    with hub(repositories) as server:
        variables = {**server.environment, **home(tmp_path)}
        assert_is_one_line(project.dvc("repro", "tokenize", check=False, **variables))
        project.set({"corpus.pretrain.hub.dataset": "acme/nothing", "corpus.pretrain.hub.revision": COMMIT})
        assert_is_one_line(project.dvc("repro", "tokenize", check=False, **variables))


@pytest.mark.slow
def test_a_network_that_is_not_there_is_one_line(repositories: Path, tmp_path: Path) -> None:
    """After half a minute: the hub's client tries again and again."""
    with hub(repositories) as server:
        variables = {**server.environment, **home(tmp_path)}
    assert_is_one_line(clone(tmp_path).dvc("repro", "tokenize", check=False, **variables))


def assert_is_one_line(done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode != 0
    assert "corpus.pretrain.hub.dataset must be a dataset that can be reached, got 'acme/" in done.stdout
    assert "Traceback" not in done.stdout
