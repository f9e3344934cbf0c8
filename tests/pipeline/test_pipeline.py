"""The real pipeline in a temporary clone: `dvc repro`, MLflow's store, push and pull."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from support.clone import Clone, completed
from support.mlflow_runs import client, runs, steps
from support.presets import setting_paths
from support.structure import ROOT, closure

from smollm.config.file import read_values
from smollm.corpus.tokenizer import train
from smollm.state.tokens import documents_of, open_split, open_tokenizer
from smollm.state.workspace import Workspace, is_code
from smollm.tracking.run_name import run_name

STAGES = ("tokenize", "pretrain", "finetune")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which the pipeline has run once."""
    clone = Clone.of_working_tree(tmp_path_factory.mktemp("pipeline") / "project", with_store=False)
    assert clone.repro() == ["tokenize", "pretrain", "finetune"]
    clone.commit("results")
    return clone


def test_the_name_of_a_run_fits_into_mlflows_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = [f"package{n}" for n in range(100)]
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "tiny.yaml").write_text("corpus: {packages: [], max_megabytes: 1.0}")
    values = {"preset": "tiny", "corpus": {"packages": packages, "max_megabytes": 2.0}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "dvc.yaml").write_text("stages: {tokenize: {params: [corpus]}}")
    workspace = Workspace(tmp_path, tmp_path)
    assert run_name("tokenize", workspace) == "tokenize tiny max_megabytes=2.0 packages=['package0', 'package1', 'pack…"
    monkeypatch.setenv("DVC_EXP_NAME", "x" * 300)
    assert len(run_name("tokenize", workspace)) == 250


def test_the_loss_begins_near_the_logarithm_of_the_vocabulary_and_falls(finished: Clone) -> None:
    metrics = finished.json("reports/pretrain/metrics.json")
    assert 0 < metrics["first_train_loss"] - math.log(512) < 1
    # how far 40 steps come depends on the standard library that they read
    assert metrics["bits_per_byte"] < 0.95 * metrics["initial_bits_per_byte"]


def test_finetune_goes_on_where_pretrain_stopped(finished: Clone) -> None:
    pretrain, finetune = (finished.rows(f"reports/{stage}/losses.tsv") for stage in ("pretrain", "finetune"))
    assert [int(row[0]) for row in pretrain] == [1, 10, 20, 30, 40]
    assert [int(row[0]) for row in finetune] == list(range(41, 51))
    assert float(finetune[0][1]) < float(pretrain[0][1]) - 0.3
    assert finished.json("checkpoints/finetune/last/trainer_state.json")["step"] == 50


def test_finetune_is_measured_on_both_texts_before_and_after(finished: Clone) -> None:
    heading = (finished.directory / "reports/finetune/validation.tsv").read_text().splitlines()[0].split("\t")
    assert heading == ["step", "validation_loss", "bits_per_byte", "pretrain_loss", "pretrain_bits_per_byte"]
    rows = finished.rows("reports/finetune/validation.tsv")
    assert [int(row[0]) for row in rows] == [40, 45, 50]
    pretrain, finetune = (finished.json(f"reports/{stage}/metrics.json") for stage in ("pretrain", "finetune"))
    # the text that pretrain was measured on last, by the same weights
    assert finetune["initial_pretrain_bits_per_byte"] == pretrain["bits_per_byte"] == float(rows[0][4])
    assert finetune["pretrain_bits_per_byte"] == float(rows[-1][4]) != float(rows[0][4])
    assert "pretrain_bits_per_byte" not in pretrain
    (run,) = runs(finished)["finetune"]
    assert steps(finished, run.info.run_id, "validation/pretrain_bits_per_byte") == [40, 45, 50]
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {
        "finetune/train",
        "finetune/validation",
        "pretrain/validation",
    }


def documents(clone: Clone, stage: str, split: str) -> dict[str, str]:
    """Texts by key, decoded from the token files that a stage trains on or is validated by."""
    directory = clone.directory / "data" / "tokens" / stage
    tokenizer = open_tokenizer(clone.directory / "data" / "tokenizer" / "tokenizer.json")
    offsets, names = documents_of(directory, split)
    ids = open_split(directory, split)
    ends = [*offsets[1:].tolist(), len(ids)]
    tokens = [ids[start : end - 1].tolist() for start, end in zip(offsets.tolist(), ends, strict=True)]
    return dict(zip(names, tokenizer.decode_batch(tokens, skip_special_tokens=False), strict=True))


def test_no_document_that_validates_either_stage_is_trained_on_by_any(finished: Clone) -> None:
    train, validation = (
        {stage: documents(finished, stage, split) for stage in ("pretrain", "finetune")}
        for split in ("train", "validation")
    )
    for held_out in validation.values():
        assert held_out
        for trained in train.values():
            assert len(trained) > 20
            assert not held_out.keys() & trained.keys()
            assert not set(held_out.values()) & set(trained.values())
    shared = train["pretrain"].keys() & train["finetune"].keys()
    assert shared, "code and documentation of one file are under one key"


def test_mlflow_holds_one_finished_run_a_stage_with_the_child_under_its_parent(finished: Clone) -> None:
    by_stage = runs(finished)
    assert {stage: len(of_stage) for stage, of_stage in by_stage.items()} == {
        "tokenize": 1,
        "pretrain": 1,
        "finetune": 1,
    }
    assert {run.info.status for of_stage in by_stage.values() for run in of_stage} == {"FINISHED"}
    pretrain, finetune = by_stage["pretrain"][0], by_stage["finetune"][0]
    assert finetune.data.tags["mlflow.parentRunId"] == pretrain.info.run_id
    assert steps(finished, pretrain.info.run_id, "train/loss") == [1, 10, 20, 30, 40]
    assert steps(finished, finetune.info.run_id, "train/loss") == list(range(41, 51))
    assert steps(finished, pretrain.info.run_id, "validation/bits_per_byte") == [0, 10, 20, 30, 40]


def test_mlflow_has_params_metrics_inputs_and_tags(finished: Clone) -> None:
    run = runs(finished)["pretrain"][0]
    assert run.data.params["pretrain.optimizer.lr"] == "0.003"
    assert run.data.params["model.hidden_size"] == "32"
    for metric in ("train/learning_rate", "train/gradient_norm", "speed/tokens_per_second", "memory/peak_gib"):
        assert metric in run.data.metrics
    facts = finished.json("reports/pretrain/run.json")
    assert run.data.metrics["speed/median_tokens_per_second"] == facts["tokens_per_second"]
    tags = run.data.tags
    commit = finished.run("git", "rev-parse", "HEAD~1").stdout.strip()
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == commit
    assert tags["dvc.stage"] == "pretrain"
    assert tags["hardware.precision"] == "fp32"
    lock = finished.run("cat", "dvc.lock").stdout
    assert tags["dvc.out.checkpoints/pretrain"] in lock
    inputs = {one.dataset.name: one.dataset.digest for one in run.inputs.dataset_inputs}
    assert set(inputs) == {"pretrain/train", "pretrain/validation"}
    assert set(inputs.values()) == {tags["dvc.dep.data/tokens/pretrain"]}
    assert inputs["pretrain/train"] in lock


def test_mlflow_has_samples_log_and_picture(finished: Clone) -> None:
    run = runs(finished)["pretrain"][0]
    store = client(finished)
    artifacts = {item.path for item in store.list_artifacts(run.info.run_id)}
    assert {"samples.json", "training_log.txt", "loss.svg", "params.yaml", "environment.json", "run.json"} <= artifacts
    of_text = runs(finished)["tokenize"][0].info.run_id
    assert {"corpus.txt", "lengths.svg", "metrics.json"} <= {item.path for item in store.list_artifacts(of_text)}
    texts = [item.path for item in store.list_artifacts(run.info.run_id, "samples")]
    # those that are due, and those of each best state
    assert texts == [f"samples/step-{step:08d}.txt" for step in (10, 20, 30, 40)]
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{finished.directory}/mlruns/mlflow.db")
    mlflow.set_experiment("smollm")
    table = mlflow.load_table("samples.json", run_ids=[run.info.run_id])
    assert list(table["step"]) == [step for step in (10, 20, 30, 40) for _ in range(3)]
    assert list(table.columns[:2]) == ["sample", "text"], "MLflow groups by the first and compares the second"
    assert table["sample"][1] == "step 10: def main("
    assert list(table["prompt"][:3]) == ["import ", "def main(", "class "]


def test_run_json_leads_to_the_run(finished: Clone) -> None:
    for stage, of_stage in runs(finished).items():
        values = finished.json(f"reports/{stage}/run.json")
        assert values["mlflow_run_id"] == of_stage[0].info.run_id
        assert values["mlflow_tracking_uri"] == "sqlite:///mlruns/mlflow.db"


def test_make_compare_shows_each_run_and_writes_them_as_csv(finished: Clone) -> None:
    shown = finished.run("make", "compare", "VENV=", "ARGS=--sort bits_per_byte --csv runs.csv").stdout
    table = (finished.directory / "runs.csv").read_text()
    (finished.directory / "runs.csv").unlink()
    for stage, of_stage in runs(finished).items():
        assert f"{stage} test" in shown
        assert of_stage[0].info.run_id in table
    digest = runs(finished)["finetune"][0].data.tags["dvc.out.checkpoints/finetune"]
    assert digest[:8] in shown


def test_transformers_loads_the_model_and_generates(finished: Clone) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(finished.directory / "models" / "finetune")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("def main(", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(ids[0]).startswith("def main(")


def test_metrics_and_plots_are_dvcs(finished: Clone) -> None:
    assert "bits_per_byte" in finished.dvc("metrics", "show", "--md").stdout
    finished.dvc("plots", "show", "--out", str(finished.directory.parent / "plots"))
    assert "train_loss" in (finished.directory.parent / "plots" / "index.html").read_text()
    charts = json.loads(finished.dvc("plots", "show", "--json").stdout)["data"]
    for name in ("training loss", "held-out text", "speed"):  # both stages in one chart
        (chart,) = charts[name]
        content = json.dumps(chart["content"])
        assert all(f'"{stage}/' in content for stage in ("pretrain", "finetune"))


def test_a_clone_next_door_pulls_what_was_pushed(finished: Clone) -> None:
    finished.dvc("push")
    beside = Clone(finished.directory.parent / "beside")
    finished.run("git", "clone", "-q", str(finished.directory), str(beside.directory))
    beside.dvc("pull")
    for path in ("checkpoints/finetune/last/model.safetensors", "models/finetune/model.safetensors"):
        assert (beside.directory / path).read_bytes() == (finished.directory / path).read_bytes()
    assert beside.repro() == []


def test_the_tag_restore_brings_back_a_checkpoint_of_commits_ago(finished: Clone, tmp_path: Path) -> None:
    before = (finished.directory / "checkpoints/finetune/last/model.safetensors").read_bytes()
    command = runs(finished)["finetune"][0].data.tags["restore"]
    finished.set({"finetune.optimizer.lr": 1e-2})
    finished.repro()
    assert (finished.directory / "checkpoints/finetune/last/model.safetensors").read_bytes() != before
    finished.commit("another learning rate")
    finished.dvc("push")
    beside = Clone(finished.directory.parent / "restored")
    finished.run("git", "clone", "-q", str(finished.directory), str(beside.directory))
    beside.run("bash", "-c", command)
    assert (beside.directory / "checkpoints/finetune/last/model.safetensors").read_bytes() == before
    assert read_values(beside.directory / "params.yaml")["finetune"]["optimizer"]["lr"] == 3e-4
    finished.run("git", "reset", "-q", "--hard", "HEAD~1")
    assert finished.repro() == []


STAGES_OF_SECTION = {
    "preset": set(),
    "seed": {"pretrain", "finetune"},
    "corpus": {"tokenize"},
    "tokenizer": {"tokenize"},
    "model": {"pretrain", "finetune"},
    "pretrain": {"pretrain"},
    "finetune": {"finetune"},
    "evaluation": {"pretrain", "finetune"},
    "evaluate": set(),  # of an optional stage
    "runtime": set(),
    "tracking": set(),
}


def changed_stages(clone: Clone) -> set[str]:
    """The stages that DVC would run, not counting those that follow from another's new outputs."""
    from dvc.repo import Repo

    with Repo(str(clone.directory)) as repo:
        return {name.rpartition(":")[2] for name in repo.status()}


def test_every_param_is_a_dependency_of_the_stages_that_read_it(finished: Clone) -> None:
    values = read_values(finished.directory / "params.yaml")
    assert values.keys() == STAGES_OF_SECTION.keys()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    # any of its params changes a section, which DVC compares whole
    assert {section for stage in stages for section in stage["params"]} <= values.keys()
    try:
        for key in {key[0]: key for key in setting_paths(values)}.values():
            finished.run("git", "checkout", "--", "params.yaml")
            finished.set({".".join(key): "changed"})
            assert changed_stages(finished) == STAGES_OF_SECTION[key[0]], key
    finally:
        finished.run("git", "checkout", "--", "params.yaml")


def test_an_edit_of_code_changes_the_stages_that_import_it_and_no_others(finished: Clone) -> None:
    """Files imported by the same stages are edited together; those that none depends on are the observers."""
    imported = {stage: closure(f"stages.{stage}") for stage in STAGES}
    groups: dict[frozenset[str], list[Path]] = defaultdict(list)
    for path in (path for folder in ("src", "stages") for path in (finished.directory / folder).rglob("*.py")):
        name = path.relative_to(finished.directory).as_posix()
        groups[frozenset(stage for stage in STAGES if name in imported[stage])].append(path)
    assert set(groups) >= {frozenset(), frozenset(STAGES), frozenset(["tokenize"]), frozenset(["pretrain", "finetune"])}
    for stages, paths in groups.items():
        before = {path: path.read_bytes() for path in paths}
        for path, content in before.items():
            path.write_bytes(content + b"# changed\n")
        assert changed_stages(finished) == stages
        for path, content in before.items():
            path.write_bytes(content)


def test_data_is_a_dependency_of_the_stages_that_read_it(finished: Clone) -> None:
    readers = {
        "data/raw/new.txt": {"tokenize"},
        "data/tokenizer/tokenizer.json": {"tokenize", "pretrain", "finetune"},  # the first made it
        "data/tokens/pretrain/train.bin": {"tokenize", "pretrain", "finetune"},  # which measures what it forgets
        "data/tokens/finetune/train.bin": {"tokenize", "finetune"},
        "checkpoints/pretrain/best/model.safetensors": {"pretrain", "finetune"},
        "models/pretrain/config.json": {"pretrain"},
    }
    for name, stages in readers.items():
        path = finished.directory / name
        before = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)  # a link into the cache
        path.write_bytes(before + b"x")
        assert changed_stages(finished) == stages, name
        path.unlink()
        if before:
            path.write_bytes(before)
    assert changed_stages(finished) == set()


@pytest.mark.slow
def test_an_edit_reruns_what_depends_on_it_and_no_more(tmp_path: Path) -> None:
    project = completed().copy(tmp_path / "project")
    assert project.repro() == []
    project.set({"runtime.keep_checkpoints": 7, "tracking.experiment": "other", "preset": "mine"})
    assert project.repro() == []
    project.set({"tracking.experiment": "smollm"})
    project.set({"finetune.optimizer.lr": 1e-3})
    assert project.repro() == ["finetune"]
    project.set({"pretrain.optimizer.lr": 1e-3})
    assert project.repro() == ["pretrain", "finetune"]
    project.set({"model.num_hidden_layers": 1})
    assert project.repro() == ["pretrain", "finetune"]
    project.set({"corpus.max_megabytes": 0.4})  # another text, whatever the sizes of its documents
    assert project.repro() == ["tokenize", "pretrain", "finetune"]
    project.run("git", "checkout", "--", "params.yaml")
    assert project.repro() == []


def test_mlflow_and_dvc_name_the_same_inputs(finished: Clone) -> None:
    lock = yaml.safe_load((finished.directory / "dvc.lock").read_text())["stages"]
    for stage, of_stage in runs(finished).items():
        recorded = {one["path"]: one["md5"] for one in lock[stage]["deps"] if not is_code(one["path"])}
        tags = of_stage[-1].data.tags
        assert {path: tags[f"dvc.dep.{path}"] for path in recorded} == recorded


def test_params_changed_while_a_stage_runs_never_pass_for_its_own(finished: Clone) -> None:
    def change(rate: float) -> None:
        finished.set({"finetune.optimizer.lr": rate})

    finished.run("git", "checkout", "--", "params.yaml")
    change(2e-3)
    with finished.start() as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("finetune: 10 steps"):
                change(5e-2)
        assert process.wait() != 0
    change(2e-3)
    output = finished.dvc("repro").stdout
    assert "already finished; publishing its outputs again" in output
    rates = [float(row[3]) for row in finished.rows("reports/finetune/losses.tsv")]
    assert max(rates) == 2e-3
    finished.run("git", "checkout", "--", "params.yaml")
    finished.repro()


def test_known_params_come_back_without_running(finished: Clone) -> None:
    before = finished.run("git", "show", "HEAD:reports/finetune/run.json").stdout
    finished.set({"finetune.optimizer.lr": 1.5e-3})
    assert finished.repro() == ["finetune"]
    assert (finished.directory / "reports/finetune/run.json").read_text() != before
    finished.run("git", "checkout", "--", "params.yaml")
    output = finished.dvc("repro").stdout
    assert "Running stage" not in output
    assert (finished.directory / "reports/finetune/run.json").read_text() == before


def test_pretrains_text_is_replayed_and_only_finetune_reruns_for_it(finished: Clone) -> None:
    plain = finished.rows("reports/finetune/validation.tsv")
    finished.set({"finetune.replay_fraction": 0.25})
    output = finished.dvc("repro").stdout
    assert [line for line in output.splitlines() if line.startswith("Running stage")] == ["Running stage 'finetune':"]
    assert "25% of the sequences replay pretrain's text" in output
    replaying = finished.rows("reports/finetune/validation.tsv")
    assert replaying[0] == plain[0], "the held-out text is the same"
    assert replaying[-1] != plain[-1]
    datasets = {one.dataset.name: one.tags[0].value for one in runs(finished)["finetune"][0].inputs.dataset_inputs}
    assert datasets == {
        "finetune/train": "training",
        "finetune/validation": "validation",
        "pretrain/train": "training",
        "pretrain/validation": "validation",
    }
    finished.run("git", "checkout", "--", "params.yaml")
    assert finished.repro() == []


def test_a_forced_run_starts_afresh(finished: Clone) -> None:
    first = finished.json("reports/finetune/run.json")["mlflow_run_id"]
    losses = finished.rows("reports/finetune/losses.tsv")
    seen = {first}
    for _ in range(2):  # once where the state of the stage is gone, and once where it is there, complete
        output = finished.dvc("repro", "--force", "--single-item", "finetune").stdout
        assert "resumed from" not in output
        assert "publishing its outputs again" not in output
        seen.add(finished.json("reports/finetune/run.json")["mlflow_run_id"])
        assert finished.rows("reports/finetune/losses.tsv") == losses
    assert "forced to run again" in output
    assert len(seen) == 3
    assert finished.repro() == []


@pytest.mark.slow
def test_documents_may_be_masked(tmp_path: Path) -> None:
    clone = Clone.of_working_tree(tmp_path / "project")
    rows = [json.dumps({"text": f"{n} bottles of beer on the wall, {n * 7} more"}) for n in range(900)]
    (clone.directory / "data" / "raw" / "short.jsonl").write_text("\n".join(rows))
    clone.set({"corpus.pretrain.source": "files", "corpus.pretrain.files": ["data/raw/*.jsonl"]})
    clone.set({"pretrain.steps": 10, "pretrain.schedule.warmup_steps": 2, "runtime.compile": True})
    clone.repro("pretrain")
    plain = clone.rows("reports/pretrain/validation.tsv")
    clone.set({"pretrain.mask_documents": True})
    assert clone.repro("pretrain") == ["pretrain"]
    masked = clone.rows("reports/pretrain/validation.tsv")
    assert [row[0] for row in masked] == [row[0] for row in plain] == ["0", "10"]
    for one, other in zip(masked, plain, strict=True):
        assert float(one[1]) == pytest.approx(float(other[1]), rel=0.1)
        assert one[1] != other[1]


@pytest.mark.slow
def test_a_preset_runs_as_an_experiment(tmp_path: Path) -> None:
    """`make repro PRESET=...` without a Git identity; a small preset stands in for tiny."""
    clone = Clone.of_working_tree(tmp_path / "project", with_tokens=True)
    small = (clone.directory / "params.yaml").read_text() + "# a comment\n"
    (clone.directory / "presets" / "small.yaml").write_text(small)
    clone.run("git", "checkout", "-q", "HEAD", "--", "params.yaml")
    (clone.directory / "params.yaml").write_text((clone.directory / "presets" / "smollm-135m.yaml").read_text())
    done = clone.run("make", "repro", "PRESET=small", "VENV=")
    assert "Ran experiment(s): " in done.stdout
    assert "No file hash info" not in done.stdout
    assert (clone.directory / "params.yaml").read_text().endswith(small), "as it is, comments and all"
    name = runs(clone)["finetune"][0].data.tags["dvc.experiment"]
    assert name in clone.dvc("exp", "list").stdout
    again = clone.run("make", "repro", "PRESET=small", "VENV=").stdout
    assert "Running stage" not in again


@pytest.mark.slow
def test_a_temporary_experiment_is_tracked_in_the_repository_itself(tmp_path: Path) -> None:
    clone = completed().copy(tmp_path / "project")
    parent = runs(clone)["pretrain"][0].info.run_id
    clone.dvc("exp", "run", "--temp", "--name", "quick", "-S", "finetune.optimizer.lr=0.01")
    newest, before = runs(clone)["finetune"]
    assert newest.info.status == before.info.status == "FINISHED"
    assert newest.data.tags["dvc.experiment"] == "quick"
    assert newest.data.tags["mlflow.parentRunId"] == parent
    assert newest.data.params["finetune.optimizer.lr"] == "0.01"
    assert "quick" in clone.dvc("exp", "list").stdout
    assert clone.run("git", "status", "--porcelain").stdout == ""
    restored = Clone(tmp_path / "restored")
    clone.run("git", "clone", "-q", str(clone.directory), str(restored.directory))
    restored.run("git", "fetch", "-q", "origin", "refs/exps/*:refs/exps/*")
    clone.dvc("exp", "apply", "quick")
    clone.dvc("push")
    restored.run("bash", "-c", newest.data.tags["restore"])
    assert f"{newest.data.tags['dvc.out.checkpoints/finetune']}" in restored.run("cat", "dvc.lock").stdout
    assert (restored.directory / "checkpoints/finetune/last/model.safetensors").exists()


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({}, {"pretrain.steps": 0}, "ERROR: params.yaml: pretrain.steps must be at least 1, got 0; use 1 or more"),
        (
            {},
            {"corpus.pretrain.source": "files", "corpus.pretrain.files": ["data/raw/*.txt"]},
            "corpus.pretrain.files must match files, got none for 'data/raw/*.txt'",
        ),
        (
            {"data/raw/a.txt": b"caf\xe9\n"},
            {"corpus.pretrain.source": "files", "corpus.pretrain.files": ["data/raw/*.txt"]},
            "data/raw/a.txt: must be UTF-8, got 0xe9 at byte 3",
        ),
        ({}, {"corpus.packages": ["no-such-thing"]}, "must name installed packages, got 'no-such-thing'"),
        (
            {"data/raw/words.json": train(["to be or not to be " * 9], 300, "<end>").to_str().encode()},
            {
                "tokenizer.source": "file",
                "tokenizer.file": "data/raw/words.json",
                "tokenizer.end_of_text": "<end>",
                "model.vocab_size": 260,
            },
            "params.yaml: model.vocab_size must hold the tokenizer's 266 tokens, got 260; raise it, or use a smaller",
        ),
        (
            {"data/raw/a.txt": b"a few words, and no more than that\n" * 3},
            {"corpus.pretrain.source": "files", "corpus.pretrain.files": ["data/raw/*.txt"]},
            "data/tokens/pretrain/train.bin: a step needs 6 sequences of 32 tokens",
        ),
    ],
    ids=["steps", "glob", "utf-8", "package", "vocabulary", "small"],
)
def test_bad_input_ends_with_one_clear_line(
    files: dict[str, bytes], settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    clone = Clone.of_working_tree(tmp_path / "project")
    for name, content in files.items():
        (clone.directory / name).write_bytes(content)
    clone.set(settings)
    done = clone.dvc("repro", check=False)
    assert done.returncode != 0
    assert message in done.stdout
    assert "Traceback" not in done.stdout
