"""Rewording what people read retrains nothing: it is said by packages that no stage depends on."""

import ast
import json
from pathlib import Path

import pytest
import yaml
from support.clone import Clone
from support.structure import ROOT

OBSERVERS = ("tracking", "operate")
SAYING = {"say", "say_error", "log", "warn", "print", "event"}
"""Functions and methods whose first argument is for people."""


def python_files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


@pytest.mark.parametrize("package", ["stage", "corpus", "training"])
def test_stages_take_every_line_that_they_say_from_an_observer(package: str) -> None:
    for file in python_files(ROOT / "src" / "smollm" / package):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "attr", getattr(node.func, "id", None))
                assert not (name in SAYING and has_words(node.args[0])), f"{file}:{node.lineno} belongs in tracking"


def has_words(argument: ast.expr) -> bool:
    """Whether an expression is a text, or is pieced together from text, that is more than a separator."""
    parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    texts = [part.value for part in parts if isinstance(part, ast.Constant)]
    return any(isinstance(text, str) and any(map(str.isalpha, text)) for text in texts)


def reword(file: Path) -> None:
    """Change every string of a module, docstrings included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value += " (reworded)"
    file.write_text(ast.unparse(tree), encoding="utf-8")


def stale_stages(project: Clone) -> list[str]:
    """The stages that `dvc repro` would run."""
    return sorted(json.loads(project.dvc("status", "--json").stdout))


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose dvc.lock records all stages, with outputs that are empty files in place of results."""
    project = Clone.of_working_tree(tmp_path_factory.mktemp("wording") / "project", with_store=False)
    for stage in yaml.safe_load((project.directory / "dvc.yaml").read_text())["stages"].values():
        for entry in [*stage["outs"], *stage["metrics"], *stage.get("plots", [])]:
            target = project.directory / (entry if isinstance(entry, str) else next(iter(entry)))
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix:
                target.touch()
            else:
                target.mkdir(exist_ok=True)
                (target / "result").touch()
    project.dvc("commit", "--force")
    return project


def test_rewording_every_observer_leaves_dvc_nothing_to_do(committed: Clone) -> None:
    assert stale_stages(committed) == []
    for package in OBSERVERS:
        for file in python_files(committed.directory / "src" / "smollm" / package):
            before = file.read_text(encoding="utf-8")
            reword(file)
            assert file.read_text(encoding="utf-8") != before
    assert stale_stages(committed) == []


def test_rewording_one_line_of_training_reruns_the_stages_that_train(committed: Clone) -> None:
    reword(committed.directory / "src" / "smollm" / "training" / "schedule.py")
    assert stale_stages(committed) == ["finetune", "pretrain"]
