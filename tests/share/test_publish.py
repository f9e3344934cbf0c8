"""Publishing, to a stand-in of the Hugging Face hub and to a folder, and what the model card says."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants, metadata_load
from support.clone import environment
from support.hub_uploads import Repository, UploadHub, upload_hub
from support.presets import SMOLLM_135M
from support.structure import ROOT
from tokenizers import Tokenizer

from smollm.config.corpus import CorpusSource
from smollm.config.model import ModelConfig
from smollm.errors import CheckpointError, ConfigError
from smollm.model.export import write_model
from smollm.model.llama import LlamaForCausalLM
from smollm.operate.models import find_model
from smollm.share.card import model_card
from smollm.share.hub import PublishError
from smollm.share.publish import run
from smollm.share.record import Record, read_record
from smollm.state.files import write_json
from smollm.state.workspace import Workspace

TOKEN = "hf_" + "OneTwo" * 6
METRICS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "step": 5000,
        "best_step": 4750,
        "exported_step": 4750,
        "bits_per_byte": 0.4432,
        "best_bits_per_byte": 0.4431,
        "corpus": "0123456789abcdef",
    },
    "finetune": {
        "step": 5050,
        "best_step": 5050,
        "exported_step": 5050,
        "bits_per_byte": 1.2345,
        "best_bits_per_byte": 1.2345,
        "initial_pretrain_bits_per_byte": 0.4431,
        "pretrain_bits_per_byte": 0.5,
        "corpus": "fedcba9876543210",
    },
}
PARAMS: dict[str, Any] = yaml.safe_load(SMOLLM_135M.read_text())
SECTIONS = ("seed", "corpus", "tokenizer", "model", "pretrain", "finetune", "evaluation")


@pytest.fixture(autouse=True)
def workspace(
    tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    """A folder with what the pipeline leaves of a finished finetune, in which the command is run."""
    root = tmp_path / "project"
    write_model(root / "models/finetune", model_config, LlamaForCausalLM(model_config).weights(), tokenizer, 0)
    for stage, metrics in METRICS.items():
        write_json(root / f"reports/{stage}/metrics.json", metrics)
    split = {"documents": 12, "bytes": 3_400_000, "tokens": 1_000_000, "bytes_per_token": 3.4}
    held_out = {"documents": 1, "bytes": 280_000, "tokens": 80_000, "bytes_per_token": 3.5}
    write_json(root / "reports/tokenize/metrics.json", {"finetune": {"train": split, "validation": held_out}})
    run_json = {"mlflow_run_id": "abc123", "mlflow_experiment": "smollm", "device": "a GPU"}
    write_json(root / "reports/finetune/run.json", run_json)
    workspace = Workspace(root, root)
    sections = {"tokenize": SECTIONS[1:3], "pretrain": SECTIONS[:5], "finetune": SECTIONS}
    stages = {
        stage: {"params": {"params.yaml": {name: PARAMS[name] for name in names}}} for stage, names in sections.items()
    }
    outs = {"models/finetune": workspace.digest("models/finetune"), "reports/finetune/training_log.txt": "77aa"}
    stages["finetune"]["outs"] = [{"path": path, "md5": digest} for path, digest in outs.items()]  # type: ignore[assignment]
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return workspace


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """A hub that the client library takes for the real one, with its token."""
    with upload_hub(TOKEN, "acme") as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_models_files_and_a_card_are_published_in_one_commit(
    hub: UploadHub, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["acme/poet", "--license", "apache-2.0"])
    repository = hub.repositories["acme/poet"]
    model = files_of(workspace.directory / "models/finetune")
    card = repository.files.pop("README.md").decode()
    assert repository.files == model
    assert list(hub.blobs.values()) == [model["model.safetensors"]], "weights go to the storage of large files"
    assert repository.messages == ["Publish models/finetune"]
    assert repository.visibility == "public"
    assert "license: apache-2.0" in card
    assert "1.2345" in card
    assert f"published at {hub.endpoint}/acme/poet" in capsys.readouterr().out
    for name, content in repository.files.items():
        (tmp_path / name).write_bytes(content)
    from transformers import AutoModelForCausalLM  # slow to import

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.num_parameters() > 1000


def test_a_private_model_is_private_from_the_start_and_a_public_one_is_not_taken_for_it(hub: UploadHub) -> None:
    run(["acme/poet", "--private"])
    assert hub.repositories["acme/poet"].visibility == "private"
    run(["acme/poet", "--private"])
    hub.repositories["acme/open"] = Repository()
    with pytest.raises(PublishError, match="acme/open: must be private as --private asks, got a public one"):
        run(["acme/open", "--private"])
    assert not hub.repositories["acme/open"].files


def test_publishing_again_keeps_the_licence_that_was_filled_in(
    hub: UploadHub, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["acme/poet"])
    assert "states no licence" in capsys.readouterr().out
    repository = hub.repositories["acme/poet"]
    before = repository.files["README.md"].decode()
    assert "To be filled in" in before
    repository.files["README.md"] = before.replace("---\n", "---\nlicense: mit\n", 1).encode()
    now = {**METRICS["finetune"], "best_bits_per_byte": 1.1111}
    write_json(workspace.directory / "reports/finetune/metrics.json", now)
    run(["acme/poet"])
    card = repository.files["README.md"].decode()
    assert "license: mit" in card
    assert "1.1111" in card
    assert len(repository.messages) == 2


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("poet", "REPO must name an owner and a model, got 'poet'; write it as user/poet"),
        ("a/b/c", "REPO must name an owner and a model, got 'a/b/c'"),
        ("other/poet", "other/poet: the Hugging Face hub refused it with 403 (You don't have the rights"),
        ("acme/-poet..", "acme/-poet..: the Hugging Face hub knows no such name or licence: "),
    ],
)
def test_a_name_that_one_cannot_have_is_refused(hub: UploadHub, repository: str, message: str) -> None:
    with pytest.raises((ConfigError, PublishError)) as error:
        run([repository])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not hub.repositories


def test_without_a_token_and_with_a_refused_one_nothing_is_sent(
    hub: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match=r"^no Hugging Face token; create one .*, or set HF_TOKEN"):
        run(["acme/poet"])
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PublishError, match=r"refused it with 401 \(.*\); check the token") as error:
        run(["acme/poet"])
    assert "hf_wrong" not in str(error.value)
    assert not hub.repositories


def test_a_licence_that_the_hub_does_not_know_is_refused(hub: UploadHub) -> None:
    with pytest.raises(PublishError, match='"license" must be one of a list, not mine; correct REPO or --license'):
        run(["acme/poet", "--license", "mine"])
    assert not hub.repositories["acme/poet"].files


def test_a_hub_that_cannot_be_reached_is_one_line(hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        PublishError, match=r"^cannot reach the Hugging Face hub \(http://127.0.0.1:9\), ConnectError"
    ) as error:
        run(["acme/poet"])
    assert "\n" not in str(error.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match=r"^HF_HUB_OFFLINE is set; unset it"):
        run(["acme/poet"])


def test_a_folder_gets_copies_of_the_same_files(workspace: Workspace, tmp_path: Path) -> None:
    run(["--to", str(tmp_path / "poet")])
    model, target = workspace.directory / "models/finetune", tmp_path / "poet"
    written = files_of(target)
    card = written.pop("README.md").decode()
    assert written == files_of(model)
    assert not (target / "config.json").samefile(model / "config.json")
    assert "# poet\n" in card
    with pytest.raises(ConfigError, match="--to must name a new or an empty folder"):
        run(["--to", str(target)])


@pytest.mark.slow
def test_the_address_and_the_token_are_taken_from_the_environment(workspace: Workspace) -> None:
    with upload_hub(TOKEN, "acme") as server:
        variables = environment() | {"PYTHONPATH": str(ROOT / "src"), "HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN}
        variables |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "smollm.share.publish"]
        options = {"cwd": workspace.directory, "env": variables, "capture_output": True, "text": True}
        done = subprocess.run([*command, "acme/poet"], check=True, **options)
        assert f"models/finetune: published at {server.endpoint}/acme/poet" in done.stdout
        assert set(files_of(workspace.directory / "models/finetune")) < set(server.repositories["acme/poet"].files)
        refused = subprocess.run([*command, "poet"], check=False, **options)
    assert refused.returncode == 1
    assert refused.stderr.strip() == "ERROR: REPO must name an owner and a model, got 'poet'; write it as user/poet"


@pytest.mark.parametrize("arguments", [[], ["acme/poet", "--to", "folder"]])
def test_either_a_name_or_a_folder_must_be_given(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(arguments)
    assert end.value.code == 2
    assert "make publish REPO=user/name" in capsys.readouterr().err


def test_an_edited_model_does_not_pass_for_the_one_that_was_measured(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.directory / "models/finetune/config.json").write_text(
        (workspace.directory / "models/finetune/config.json").read_text() + "\n"
    )
    with pytest.raises(CheckpointError, match=r"models/finetune: must be as dvc.lock records it"):
        run(["--to", str(tmp_path / "poet")])


def card_of(workspace: Workspace, config: ModelConfig, licence: str | None = None) -> str:
    with find_model("models/finetune", workspace) as found:
        return model_card("acme/poet", config, read_record(found, workspace), licence)


def test_the_card_says_how_the_model_was_made(workspace: Workspace, model_config: ModelConfig, tmp_path: Path) -> None:
    card = card_of(workspace, model_config)
    for line in (
        "| pretrain, best | 4,750 | 0.4431 |",
        "| pretrain, last | 5,000 | 0.4432 |",
        "| finetune, best and last (this model) | 5,050 | 1.2345 |",
        "| finetune, on pretrain's held-out text | 5,050 | 0.4431 before, 0.5000 |",
        "12 documents (3.4 MB, 1,000,000 tokens) to train on, 1 document (0.3 MB, 80,000 tokens) held out",
        "`fedcba9876543210`",
        "Python source code of stdlib, torch, numpy, pandas, scipy, scikit-learn, sympy, networkx and 14 more",
        "| pretrain | 5,000 | 65,536 | muon | 0.003 |",
        "MLflow run `abc123` of the experiment `smollm`.",
        "-S 77aa -- dvc.lock",
        "dvc pull --force checkpoints/finetune models/finetune",
        "no chat template by design",
        "To be filled in",
    ):
        assert line in card, line
    (settings,) = [part.split("```")[0] for part in card.split("```yaml\n")[1:]]
    assert yaml.safe_load(settings) == {name: PARAMS[name] for name in SECTIONS}
    (tmp_path / "README.md").write_text(card)
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-generation"
    assert "license" not in metadata


def test_the_card_of_pretrain_says_nothing_of_finetune(workspace: Workspace, model_config: ModelConfig) -> None:
    (workspace.directory / "models/finetune").rename(workspace.directory / "models/pretrain")
    lock = yaml.safe_load((workspace.directory / "dvc.lock").read_text())
    lock["stages"]["pretrain"]["outs"] = [
        {"path": "models/pretrain", "md5": workspace.digest("models/pretrain")},
    ]
    (workspace.directory / "dvc.lock").write_text(yaml.safe_dump(lock))
    with find_model("models/pretrain", workspace) as found:
        record = read_record(found, workspace)
    assert "finetune" not in record.params
    assert list(record.metrics) == ["pretrain"]
    assert "| pretrain, best (this model) | 4,750 |" in model_card("acme/poet", model_config, record, None)


def test_the_card_of_a_folder_from_elsewhere_claims_nothing(model_config: ModelConfig) -> None:
    card = model_card("acme/poet", model_config, Record(), "mit")
    assert [line for line in card.splitlines() if line.startswith("#")] == ["# poet", "## Use", "## Licence"]
    assert "trained from random weights" not in card


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"source": "files", "files": ["data/raw/*.txt"]}, "own files (data/raw/*.txt)"),
        (
            {"source": "hub", "files": [], "hub": {"dataset": "acme/texts", "revision": "0123"}},
            "the dataset `acme/texts` of the Hugging Face hub, revision 0123",
        ),
    ],
)
def test_the_card_names_other_texts(model_config: ModelConfig, settings: dict[str, Any], text: str) -> None:
    params = json.loads(json.dumps(PARAMS))
    params["corpus"]["pretrain"] |= settings
    record = replace(Record(), stage="pretrain", params=params, metrics={"pretrain": METRICS["pretrain"]})
    assert text in model_card("acme/poet", model_config, record, None)


@pytest.mark.parametrize("source", CorpusSource)
def test_the_card_has_words_for_every_source(model_config: ModelConfig, source: CorpusSource) -> None:
    params = json.loads(json.dumps(PARAMS))
    params["corpus"]["pretrain"]["source"] = source.value
    record = replace(Record(), stage="pretrain", params=params, metrics={"pretrain": METRICS["pretrain"]})
    assert f"| pretrain | {source.value} |" not in model_card("acme/poet", model_config, record, None)
