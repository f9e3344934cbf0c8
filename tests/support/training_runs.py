"""Projects that train for real: started, watched step by step, and compared with one that nothing disturbed."""

import re
import subprocess
import time
from pathlib import Path

from support.clone import Clone, shared
from support.mlflow_runs import runs, steps

TRAINING_STAGES = ("pretrain", "finetune")

EVERY_STEP = {
    "pretrain.log_every_steps": 1,
    "pretrain.sample_every_steps": 7,
    "pretrain.validate_every_steps": 5,
    "finetune.replay_fraction": 0.25,
    "finetune.sample_every_steps": 7,
    "runtime.micro_batch_size": 2,
}
"""Everything is recorded often, and a step has three micro-batches."""


def clone(directory: Path, with_tokens: bool = True, **lengths: int) -> Clone:
    """A project with so many steps of each stage, whose text is tokenized unless `with_tokens` is false."""
    project = Clone.of_working_tree(directory, with_tokens=with_tokens)
    project.set({**EVERY_STEP, **{f"{stage}.steps": length for stage, length in lengths.items()}})
    project.commit("params")
    return project


def undisturbed(pretrain: int, finetune: int) -> Clone:
    """A project of that many steps that has run without a fault."""

    def build(directory: Path) -> None:
        clone(directory, pretrain=pretrain, finetune=finetune).repro()

    return Clone(shared(f"{pretrain}-and-{finetune}-steps", build))


def assert_equals_undisturbed(project: Clone, pretrain: int, finetune: int) -> None:
    """Every exact output is that of an undisturbed run, and MLflow has every step once."""
    expected = undisturbed(pretrain, finetune)
    exact = [path for stage in TRAINING_STAGES for path in exact_outputs(stage)]
    tokens = ["data/tokenizer/tokenizer.json", *(f"data/tokens/{stage}/train.bin" for stage in TRAINING_STAGES)]
    for path in [*tokens, *exact]:
        assert (project.directory / path).read_bytes() == (expected.directory / path).read_bytes(), path
    assert [int(row[0]) for row in project.rows("reports/pretrain/losses.tsv")] == list(range(1, pretrain + 1))
    for stage in TRAINING_STAGES:
        (expected_run,), (run,) = runs(expected)[stage], runs(project)[stage]
        assert run.info.status == "FINISHED"
        for metric in ("train/loss", "train/learning_rate", "validation/loss", "speed/step_ms"):
            expected_steps = steps(expected, expected_run.info.run_id, metric)
            assert steps(project, run.info.run_id, metric) == expected_steps, (stage, metric)


def exact_outputs(stage: str) -> list[str]:
    """The outputs of a stage that do not depend on the machine's speed."""
    files = ("model.safetensors", "optimizer.safetensors", "trainer_state.json")
    checkpoints = [f"checkpoints/{stage}/{which}/{name}" for which in ("best", "last") for name in files]
    reports = [f"reports/{stage}/{name}" for name in ("losses.tsv", "validation.tsv", "samples.tsv", "metrics.json")]
    return [*checkpoints, f"models/{stage}/model.safetensors", *reports]


def journal(directory: Path, stage: str, since: float = 0.0) -> bytes:
    """The journals of a stage, of all its states that were written to since then."""
    journals = directory.glob(f".resume/{stage}/*/journal.jsonl")
    return b"".join(path.read_bytes() for path in journals if path.stat().st_mtime >= since)


def last_step(directory: Path, stage: str = "pretrain", since: float = 0.0) -> int:
    """The last step in the journal of a stage, 0 before it has one."""
    recorded = re.findall(rb'"kind": "step", "step": (\d+)', journal(directory, stage, since))
    return int(recorded[-1]) if recorded else 0


def wait_for_step(project: Clone, process: "subprocess.Popen[str]", step: int) -> None:
    """Return when `pretrain`, which `process` has just begun to run, has recorded `step`."""
    began = time.time()
    while last_step(project.directory, since=began) < step:
        assert process.poll() is None, f"ended before step {step}"
        time.sleep(0.005)


def resumes(directory: Path, stage: str) -> list[int]:
    """The steps that a stage was resumed from so far."""
    return [int(step) for step in re.findall(rb"resumed from step (\d+)", journal(directory, stage))]
