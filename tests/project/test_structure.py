"""The shape of the code: layers, dvc.yaml against the imports, README against the files."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.structure import OBSERVERS, ORDER, ROOT, closure, code_of, imports, path_of

from smollm.config.file import Config

STAGES = ("tokenize", "pretrain", "finetune", "evaluate")

PURE = ("smollm.training.schedule", "smollm.model.throughput", "smollm.state.journal", "smollm.errors")
"""These need nothing but the standard library."""


def modules() -> list[str]:
    files = (ROOT / "src" / "smollm").rglob("*.py")
    names = [file.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".") for file in files]
    return sorted(name.removesuffix(".__init__") for name in names if name != "smollm.__init__")


def packages(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names


def role(module: str) -> int:
    """Where a module's package stands in the order."""
    return next(index for index, packages in enumerate(ORDER) if module.split(".")[1] in packages)


def test_the_order_names_every_package_and_there_are_few() -> None:
    there = {module.split(".")[1] for module in modules()}
    assert there == set().union(*ORDER)
    assert len(there) <= 14


@pytest.mark.parametrize("module", modules())
def test_packages_import_only_what_stands_before_them(module: str) -> None:
    path = path_of(module)
    assert path is not None
    for other in imports(path):
        if other != "smollm" and other.split(".")[1] != module.split(".")[1]:
            assert role(other) < role(module), f"{module} imports {other}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {module: set(imports(path_of(module) or Path())) - {"smollm", module} for module in modules()}
    while graph:
        leaves = {module for module, needed in graph.items() if not needed & graph.keys()}
        assert leaves, f"a circle among {', '.join(sorted(graph))}"
        graph = {module: needed for module, needed in graph.items() if module not in leaves}


def test_nothing_imports_the_stages() -> None:
    for module in modules():
        path = path_of(module)
        assert path is not None
        assert "stages" not in packages(path)


def test_only_tracking_knows_mlflow() -> None:
    users = {module for module in modules() if "mlflow" in packages(path_of(module) or Path())}
    assert users
    assert all(module.startswith("smollm.tracking.") for module in users)


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_need_the_standard_library_alone(name: str) -> None:
    path = path_of(name)
    assert path is not None
    assert packages(path) - {"smollm"} <= set(sys.stdlib_module_names)


def test_the_config_is_free_of_torch() -> None:
    for module in modules():
        if module.startswith("smollm.config"):
            assert "torch" not in packages(path_of(module) or Path())


def entry(stage: str) -> dict[str, Any]:
    """A stage's entry in dvc.yaml, or in the file that becomes one for an optional stage."""
    optional = ROOT / "stages" / f"{stage}.yaml"
    file = optional if optional.exists() else ROOT / "dvc.yaml"
    stages: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["stages"]
    return stages[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_the_code_that_a_stage_imports_and_no_more(stage: str) -> None:
    assert code_of(entry(stage)["deps"]) == closure(f"stages.{stage}")


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_the_params_that_a_stage_reads(stage: str) -> None:
    declared = set(entry(stage)["params"])
    files = [path for path in closure(f"stages.{stage}") if path.startswith("stages/")]
    nodes = [node for path in files for node in ast.walk(ast.parse((ROOT / path).read_text()))]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    read = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "config"}
    # `config.training(stage)` is the stage's own section
    read = {stage if name == "training" else name for name in read}
    passed_on = [node for node in nodes if isinstance(node, ast.keyword) and getattr(node.value, "id", "") == "config"]
    assert not passed_on, "a stage passes on sections, not the configuration"
    assert read - {"runtime", "tracking"} == declared
    assert read <= set(Config.__annotations__)


def test_every_observer_is_there() -> None:
    for module in OBSERVERS:
        assert path_of(module), module


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_thin(stage: str) -> None:
    assert len((ROOT / "stages" / f"{stage}.py").read_text().splitlines()) <= 40


def tracked() -> list[str]:
    listing = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True)
    return listing.stdout.split()


def test_the_readmes_tree_lists_the_top_level_and_every_package() -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.S)
    assert block, "README.md has a tree"
    shown: set[str] = set()
    folder = ""
    for line in block.group(1).splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        shown.add(folder + name if line.startswith(" ") else name)
    assert not [name for name in shown if not os.path.lexists(ROOT / name)]
    there = {name.split("/")[0] for name in tracked()} | {f"src/smollm/{package}/" for package in set().union(*ORDER)}
    missing = {name for name in there if not any(one.startswith(name) for one in shown)}
    ordinary = {"src/smollm/errors/", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "dvc.lock", "reports"}
    assert {name for name in missing if not name.startswith(".")} <= ordinary


def test_the_tests_that_the_docs_name_are_there() -> None:
    for document in (ROOT / "docs").rglob("*.md"):
        for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", document.read_text()):
            files = (ROOT / "tests").rglob(file)  # packages may have a file of the same name
            assert any(f"def {name}(" in path.read_text() for path in files), f"{document.name}: {file}::{name}"


def test_no_absolute_path_or_registry_is_committed() -> None:
    for name in ("requirements.lock", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert "://" not in text.replace("sqlite://", ""), name
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.!]+", line) for line in pins if not line.startswith("#"))
    assert "torch==2.13.0" in pins
