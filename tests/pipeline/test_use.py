"""A trained model in use, by the commands of the docs, in the repository that trained it."""

import json
import shutil

import pytest
from support.clone import Clone, completed
from support.hub_uploads import upload_hub
from support.mlflow_runs import runs

pytestmark = pytest.mark.slow

PROMPT = ('PROMPT=def main( "$$HOME', "ARGS=--tokens 20 --seed 5 --json")
"""With what a shell and make would take apart."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project with results in a commit, and an experiment whose finetune differs."""
    project = completed().copy(tmp_path_factory.mktemp("use") / "project")
    project.dvc("exp", "run", "--temp", "--name", "hot", "-S", "finetune.optimizer.lr=0.01")
    return project


def sample(project: Clone, *arguments: str) -> str:
    """The text that `make sample` prints."""
    done = project.run("make", "--silent", "sample", "VENV=", *PROMPT, *arguments)
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    answer = json.loads(line)
    assert answer["prompt"] == 'def main( "$HOME'
    text: str = answer["text"]
    return text


def test_a_model_is_sampled_by_folder_revision_and_run(trained: Clone) -> None:
    here, hot = sample(trained), sample(trained, "MODEL=hot")
    assert here != hot
    assert sample(trained, "MODEL=HEAD") == here
    newest, oldest = runs(trained)["finetune"]
    assert sample(trained, f"MODEL={newest.info.run_id[:12]}") == hot
    assert sample(trained, f"MODEL={oldest.info.run_id}") == here
    assert sample(trained, "MODEL=HEAD:pretrain") == sample(trained, "MODEL=models/pretrain") != here


def test_a_published_model_is_the_trained_one_and_its_card_leads_back_to_it(trained: Clone) -> None:
    folder, token = trained.directory / "models" / "finetune", "hf_" + "OneTwo" * 6
    with upload_hub(token, "ada") as server:
        variables = {
            "HF_ENDPOINT": server.endpoint,
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = ("make", "publish", "VENV=", "REPO=ada/small", "ARGS=--license mit")
        trained.run(*command, HF_HOME=str(trained.directory.parent), **variables)
    files = server.repositories["ada/small"].files
    card = files.pop("README.md").decode()
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert f"{trained.json('reports/finetune/metrics.json')['best_bits_per_byte']:.4f}" in card
    assert trained.json("reports/finetune/run.json")["mlflow_run_id"] in card
    shutil.rmtree(folder)
    trained.run("bash", "-c", next(line for line in card.splitlines() if line.startswith("commit=$(git log")))
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
