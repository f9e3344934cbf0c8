"""A temporary clone of the project in which tests run the real pipeline, small."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import yaml
from support.structure import ROOT

from smollm.tracking.mlflow_store import MlflowStore

SMALL: dict[str, Any] = {
    "preset": "test",
    "corpus.packages": ["stdlib"],
    "corpus.max_megabytes": 1.0,
    "corpus.validation_fraction": 0.1,
    "tokenizer.vocab_size": 512,
    "tokenizer.train_megabytes": 0.2,
    "model.vocab_size": 512,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_hidden_layers": 2,
    "model.initializer_range": 0.17677669529663687,
    "pretrain.steps": 40,
    "pretrain.sequences_per_step": 6,
    "pretrain.sequence_length": 32,
    "pretrain.optimizer.lr": 3e-3,
    "pretrain.optimizer.embedding_lr": 3e-3,
    "pretrain.schedule.decay_fraction": 0.4,
    "pretrain.ema_decay": None,
    "pretrain.schedule.warmup_steps": 5,
    "pretrain.validate_every_steps": 10,
    "pretrain.sample_every_steps": 20,
    "finetune.steps": 10,
    "finetune.sequences_per_step": 6,
    "finetune.sequence_length": 32,
    "finetune.optimizer.lr": 3e-4,
    "finetune.optimizer.embedding_lr": 3e-4,
    "finetune.ema_decay": None,
    "finetune.schedule.warmup_steps": 2,
    "finetune.sample_every_steps": 10,
    "finetune.validate_every_steps": 5,
    "evaluation.validation_tokens": 1024,
    "evaluation.sample_tokens": 8,
    "runtime.device": "cpu",
    "runtime.precision": "fp32",
    "runtime.compile": False,
    "runtime.checkpoint_every_steps": 5,
    "tracking.send_every_seconds": 0.2,
}
"""The tiny preset, made smaller: a whole pipeline in half a minute. Tuning the preset changes none of it."""


def environment() -> dict[str, str]:
    """This process's, without what would lead a clone elsewhere, and without a Git identity."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):  # without bytecode every start compiles all modules
        kept.pop(name, None)
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    kept["GIT_CONFIG_GLOBAL"] = os.devnull
    # threads gain nothing on models this small, and on a busy machine they wait for each other
    kept["OMP_NUM_THREADS"] = "1"
    return kept


SHARED = Path(os.environ.setdefault("SMOLLM_TESTS_SHARED", f"{tempfile.gettempdir()}/smollm-tests-{os.getpid()}"))
"""What the tests of one session share, in all of its processes; removed when it ends."""


def shared(name: str, build: Callable[[Path], object]) -> Path:
    """A folder that `build` fills the first time any test of the session asks for it."""
    directory = SHARED / name
    SHARED.mkdir(exist_ok=True)
    with (SHARED / f"{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (SHARED / f"{name}.done").exists():
            shutil.rmtree(directory, ignore_errors=True)
            build(directory)
            (SHARED / f"{name}.done").touch()
    return directory


def empty_store() -> Path:
    """MLflow's database with its tables and nothing in them."""

    def build(directory: Path) -> None:
        directory.mkdir()
        MlflowStore(f"sqlite:///{directory}/mlflow.db", directory).client()

    return shared("empty-store", build) / "mlflow.db"


def tokenized() -> "Clone":
    """A clone in which only `tokenize` has run. Tests that change anything take a copy."""
    return Clone(shared("tokenized", lambda directory: Clone.of_working_tree(directory).repro("tokenize")))


def completed() -> "Clone":
    """A clone in which the pipeline has run, with its results in a commit. Tests that change anything take a copy."""

    def build(directory: Path) -> None:
        clone = tokenized().copy(directory)
        clone.repro()
        clone.commit("results")

    return Clone(shared("completed", build))


class Clone:
    """A clone of the working tree, with its own small params."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def of_working_tree(cls, directory: Path, with_store: bool = True, with_tokens: bool = False) -> "Clone":
        """Clone the repository and bring over what is not committed yet.

        Args:
            with_store: begin with MLflow's tables made, which saves seconds.
            with_tokens: DVC's cache has what `tokenize` gives, so that it need not run: seconds more.
        """
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, directory], check=True)
        listing = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
        )
        for name in listing.stdout.splitlines():
            source, target = ROOT / name, directory / name
            if name.startswith("reports/") or name == "dvc.lock" or not (source.exists() or source.is_symlink()):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
        shutil.rmtree(directory / "reports", ignore_errors=True)
        (directory / "dvc.lock").unlink(missing_ok=True)
        shutil.copyfile(directory / "presets" / "tiny.yaml", directory / "params.yaml")
        clone = cls(directory)
        clone.set(SMALL)
        clone.commit("clone")
        if with_store:
            shutil.copyfile(empty_store(), directory / "mlruns" / "mlflow.db")
        if with_tokens:
            shutil.copytree(tokenized().directory / ".dvc" / "cache", directory / ".dvc" / "cache", dirs_exist_ok=True)
        return clone

    def copy(self, directory: Path) -> "Clone":
        """The same in another folder, with all that has run here."""
        subprocess.run(["cp", "-a", self.directory, directory], check=True)
        return Clone(directory)

    def set(self, values: dict[str, Any]) -> None:
        """Change settings of params.yaml, by dotted name."""
        file = self.directory / "params.yaml"
        params = yaml.safe_load(file.read_text())
        for key, value in values.items():
            *path, last = key.split(".")
            section = params
            for name in path:
                section = section[name]
            section[last] = value
        file.write_text(yaml.safe_dump(params, sort_keys=False))

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command there; its output in one text."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command} failed:\n{done.stdout[-6000:]}"
        return done

    def dvc(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check, **variables)

    def start(
        self,
        *arguments: str,
        stdout: "int | IO[str]" = subprocess.PIPE,
        first_on_path: str | None = None,
        verb: tuple[str, ...] = ("repro",),
        **variables: str,
    ) -> "subprocess.Popen[str]":
        """Start `dvc repro`, or another verb of DVC's, in a session of its own."""
        values = environment() | variables
        if first_on_path:
            values["PATH"] = f"{first_on_path}{os.pathsep}{values['PATH']}"
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *verb, *arguments],
            cwd=self.directory,
            env=values,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro`; the stages that it ran."""
        output = self.dvc("repro", *arguments).stdout
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", message)

    def json(self, path: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.directory / path).read_text())
        return values

    def rows(self, path: str) -> list[list[str]]:
        """A TSV's rows below its heading."""
        return [line.split("\t") for line in (self.directory / path).read_text().splitlines()[1:]]
