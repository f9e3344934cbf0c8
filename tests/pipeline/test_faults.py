"""Real faults under a real `dvc repro`: bad numbers, a full disk, no time, damage; what is said, and what is kept."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.clone import Clone, shared
from support.mlflow_runs import client, runs, steps
from support.no_locks import no_locks
from support.small_disk import fill, small_disk
from support.training_runs import assert_equals_undisturbed, clone, exact_outputs, last_step, undisturbed, wait_for_step


def error_line(output: str) -> str:
    """The one line with which a stage ended."""
    assert "Traceback" not in output, output
    (line,) = (line for line in output.splitlines() if line.startswith("ERROR: ") and "failed to reproduce" not in line)
    return line


def kill_after(project: Clone, step: int) -> None:
    """kill -9 of DVC and the trainer, once pretrain has got that far."""
    with project.start() as process:
        wait_for_step(project, process, step)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_bad_numbers_stop_with_the_text_that_gave_them(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", pretrain=60, finetune=8)
    project.set({"pretrain.optimizer.lr": 1e30, "pretrain.schedule.warmup_steps": 0})
    line = error_line(project.dvc("repro", check=False).stdout)
    assert re.search(
        r"pretrain: loss and gradient must be finite, got loss .* at step 2, which was not taken; "
        r"its text is in reports/pretrain/failure\.json and in MLflow; lower pretrain\.optimizer\.lr",
        line,
    )
    text = (project.directory / "reports/pretrain/failure.json").read_text()
    failure = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert failure["step"] == 2
    assert len(failure["sequences"]) == 6
    for sequence in failure["sequences"]:
        assert sequence["documents"]
        assert len(sequence["text"]) > 20
    named = {name for sequence in failure["sequences"] for name in sequence["documents"]}
    listing = (project.directory / "data/tokens/pretrain/documents.tsv").read_text()
    assert all(f"\t{name}\n" in listing for name in named)
    (run,) = runs(project)["pretrain"]
    assert run.info.status == "FAILED"
    assert "must be finite" in run.data.tags["error"]
    assert "failure.json" in [item.path for item in client(project).list_artifacts(run.info.run_id)]
    assert "failure.json" not in project.run("git", "status", "--porcelain", "-uall").stdout
    project.set({"pretrain.optimizer.lr": 1e-3})
    project.repro("pretrain")
    assert not (project.directory / "reports/pretrain/failure.json").exists()


def test_the_full_model_is_refused_on_a_small_machine_before_the_text_is_read(tmp_path: Path) -> None:
    project = Clone.of_working_tree(tmp_path / "project")
    shutil.copyfile(project.directory / "presets" / "smollm-135m.yaml", project.directory / "params.yaml")
    project.set({"runtime.device": "cpu", "runtime.max_hours": 0.5})
    began = time.monotonic()
    line = error_line(project.dvc("repro", check=False).stdout)
    assert time.monotonic() - began < 60
    assert re.search(
        r"pretrain: must take at most runtime\.max_hours \(0\.5\), got at least [\d,.]+ hours for 5000 steps .*"
        r"use `make repro PRESET=tiny`, or raise runtime\.max_hours",
        line,
    )
    assert not (project.directory / "data/tokens").exists()


def test_training_whose_steps_are_too_slow_ends_after_a_few(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", pretrain=60, finetune=8)
    # 18 ms: several times what the products of 16 tokens take on a busy machine, a fraction of what 40 steps take
    project.set({"pretrain.sequences_per_step": 2, "pretrain.sequence_length": 8, "runtime.max_hours": 5e-6})
    line = error_line(project.dvc("repro", check=False).stdout)
    assert re.search(r"pretrain: must take .* got about [\d.]+ hours for 40 steps \([\d.]+ s a step\); ", line)
    assert last_step(project.directory) == 19


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line_and_costs_no_checkpoint(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", pretrain=60, finetune=8)
    with small_disk(project.directory / ".resume", 16384):
        filler = project.directory / ".resume" / "filler"
        with project.start() as process:
            wait_for_step(project, process, 12)
            fill(filler)
            said, _ = process.communicate()
        assert process.returncode != 0
        assert re.search(r"ERROR: the disk is full, .*\.resume/pretrain/.* \(No space left", error_line(said))
        checkpoints = sorted(project.directory.glob(".resume/pretrain/*/checkpoints/step-*"))
        assert checkpoints
        refused = error_line(project.dvc("repro", check=False).stdout)
        assert "No space left" in refused or "GB free for 4 checkpoints" in refused
        assert sorted(project.directory.glob(".resume/pretrain/*/checkpoints/step-*")) == checkpoints
        filler.unlink()
        output = project.dvc("repro").stdout
        newest = int(checkpoints[-1].name.removeprefix("step-"))
        assert f"resumed from step {newest}\n" in output
        assert_equals_undisturbed(project, pretrain=60, finetune=8)


@pytest.mark.slow
def test_a_disk_too_small_for_the_checkpoints_is_refused_before_the_first_step(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", pretrain=60, finetune=8)
    project.repro("tokenize")
    with small_disk(project.directory / ".resume", 512):
        line = error_line(project.dvc("repro", check=False).stdout)
        assert re.search(
            r"pretrain: the disk must have 0\.00\d+ GB free for 4 checkpoints of 0\.00\d+ GB, got 0\.00", line
        )
        assert last_step(project.directory) == 0


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", pretrain=60, finetune=8)
    kill_after(project, 22)
    *_, older, newest = sorted(project.directory.glob(".resume/pretrain/*/checkpoints/step-*"))
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    output = project.dvc("repro").stdout
    assert re.search(rf"{newest}/optimizer\.safetensors: must have the sha256 .*; going back to the checkpoint", output)
    assert f"resumed from step {int(older.name.removeprefix('step-'))}\n" in output
    assert_equals_undisturbed(project, pretrain=60, finetune=8)


@pytest.mark.slow
def test_a_dvc_lock_torn_by_a_kill_costs_its_removal_and_no_training(tmp_path: Path) -> None:
    """DVC writes dvc.lock in place."""
    project = undisturbed(60, 8).copy(tmp_path / "project")
    lock = project.directory / "dvc.lock"
    before = {path: (project.directory / path).read_bytes() for path in exact_outputs("finetune")}
    run_json = (project.directory / "reports/finetune/run.json").read_text()
    for torn in (b"", lock.read_bytes()[:-700]):
        lock.write_bytes(torn)
        assert project.dvc("repro", check=False).returncode != 0
        lock.unlink()
        assert project.repro() == []
        assert {path: (project.directory / path).read_bytes() for path in before} == before
        assert (project.directory / "reports/finetune/run.json").read_text() == run_json


@pytest.mark.slow
def test_a_lock_of_dvcs_held_by_a_stranger_is_said_by_dvc(tmp_path: Path) -> None:
    """After a restart of the machine, another process may have the number of the killed one."""
    project = clone(tmp_path / "project", with_tokens=False, pretrain=60, finetune=8)
    path = project.directory / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(exist_ok=True)
    holder = {"pid": os.getpid(), "cmd": "dvc repro"}
    path.write_text(json.dumps({"write": {str(project.directory / "data" / "tokenizer"): holder}, "read": {}}))
    said = project.dvc("repro", check=False)
    assert said.returncode != 0
    assert "you can manually remove" in said.stdout
    assert str(path) in said.stdout
    path.unlink()
    assert project.repro("tokenize") == ["tokenize"]


@pytest.mark.slow
def test_a_file_system_without_locks_is_worked_on(tmp_path: Path) -> None:
    """kill -9 included; DVC has a setting of its own for such a file system."""
    project = clone(tmp_path / "project", pretrain=60, finetune=8)
    preload = no_locks(tmp_path)
    assert "Unable to acquire lock" in project.dvc("repro", check=False, LD_PRELOAD=preload).stdout
    project.dvc("config", "--local", "core.hardlink_lock", "true")
    (project.directory / ".dvc" / "tmp" / "lock").unlink()  # left by DVC, which would take it for a lock
    with project.start(LD_PRELOAD=preload) as process:
        wait_for_step(project, process, 12)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    output = project.dvc("repro", LD_PRELOAD=preload).stdout
    assert output.count("pretrain: the file system of ") == 1
    assert ".resume has no file locks (No locks available): do not run it on two machines at once" in output
    assert "resumed from step " in output
    assert_equals_undisturbed(project, pretrain=60, finetune=8)


def edit_param(project: Clone) -> None:
    project.set({"pretrain.optimizer.lr": 1e-3})


def edit_input(project: Clone) -> None:
    project.set({"corpus.max_megabytes": 0.9})


def edit_code(project: Clone) -> None:
    trainer = project.directory / "src" / "smollm" / "training" / "trainer.py"
    trainer.write_text(f"{trainer.read_text()}\n\n_EDITED = True\n")


EDITS = (edit_param, edit_input, edit_code)


def made_with_all_edits() -> Clone:
    """A project that was edited before it ran for the first time."""

    def build(directory: Path) -> None:
        project = clone(directory, pretrain=60, finetune=8)
        for edit in EDITS:
            edit(project)
        project.repro()

    return Clone(shared("made-with-all-edits", build))


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True], ids=["finished", "killed"])
def test_an_edit_never_resumes_what_was_there(is_killed: bool, tmp_path: Path) -> None:
    """Edit after edit of a project whose pretraining has finished, or was killed, each time before."""
    if is_killed:
        project = clone(tmp_path / "project", pretrain=60, finetune=8)
    else:
        project = undisturbed(60, 8).copy(tmp_path / "project")
    for edit in EDITS:
        if is_killed:
            kill_after(project, 12)
        else:
            assert "resumed from" not in project.dvc("repro", "pretrain").stdout
        edit(project)
    output = project.dvc("repro").stdout
    assert "resumed from" not in output
    assert "publishing its outputs again" not in output
    assert "starting from pretrain's checkpoint at step 60" in output
    fresh = made_with_all_edits()
    for path in [*exact_outputs("pretrain"), *exact_outputs("finetune")]:
        assert (project.directory / path).read_bytes() == (fresh.directory / path).read_bytes(), path


@pytest.mark.slow
def test_undoing_an_edit_goes_on_where_it_was(tmp_path: Path) -> None:
    """Kill, edit, repro (killed early), undo: nothing of what was trained is lost, of either version."""
    project = clone(tmp_path / "project", pretrain=60, finetune=8)
    params = (project.directory / "params.yaml").read_text()
    kill_after(project, 22)
    ((first, newest),) = checkpoints_by_state(project).items()
    edit_param(project)
    kill_after(project, 12)
    assert set(checkpoints_by_state(project)) > {first}
    (project.directory / "params.yaml").write_text(params)
    output = project.dvc("repro").stdout
    assert re.search(r"pretrain: keeping \.resume/pretrain/\w+ \(at step 1\d, .* which has lr=0\.001; undo", output)
    assert f"resumed from step {newest}\n" in output
    expected = undisturbed(60, 8)
    for path in [*exact_outputs("pretrain"), *exact_outputs("finetune")]:
        assert (project.directory / path).read_bytes() == (expected.directory / path).read_bytes(), path
    (finished,) = (run for run in runs(project)["pretrain"] if run.info.status == "FINISHED")
    assert steps(project, finished.info.run_id, "train/loss") == list(range(1, 61))

    edit_param(project)
    output = project.dvc("repro", "pretrain").stdout
    assert "resumed from step 10\n" in output
    assert [run.info.status for run in runs(project)["pretrain"]] == ["FINISHED", "FINISHED"]


def checkpoints_by_state(project: Clone) -> dict[str, int]:
    """The step of the newest checkpoint of each state of pretrain, by fingerprint."""
    paths = sorted(project.directory.glob(".resume/pretrain/*/checkpoints/step-*"))
    return {path.parents[1].name: int(path.name.removeprefix("step-")) for path in paths}


@pytest.mark.slow
def test_what_is_kept_of_an_edit_that_was_taken_back_goes_when_asked_to(tmp_path: Path) -> None:
    project = undisturbed(60, 8).copy(tmp_path / "project")
    params = (project.directory / "params.yaml").read_text()
    edit_param(project)
    kill_after(project, 12)
    (project.directory / "params.yaml").write_text(params)
    output = project.run("make", "repro", "VENV=").stdout
    (name,) = re.findall(r"pretrain: keeping .*`make drop STATE=(\S+)` removes it", output)
    assert [f"pretrain/{state}" for state in checkpoints_by_state(project)] == [name]
    assert f"removed .resume/{name}" in project.run("make", "drop", "VENV=", f"STATE={name}").stdout
    assert not [path for path in (project.directory / ".resume").glob("*/*") if path.is_dir()]
    assert {run.info.status for run in runs(project)["pretrain"]} == {"FINISHED", "KILLED"}
    refused = project.run("make", "drop", "VENV=", f"STATE={name}", check=False)
    assert error_line(refused.stdout) == f"ERROR: STATE must name a folder of .resume/, got '{name}'; there are: none"
