"""The shape of the code: layers, dvc.yaml against the imports, README against the files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from structure import OBSERVERS, ROOT, closure, imports, path_of

from smollm.config.file import Config

STAGES = ("tokenize", "pretrain", "finetune")

LAYERS = [
    {"errors"},
    {
        "config",
        "document",
        "group",
        "encoding_process",
        "files",
        "journal",
        "progress",
        "provenance",
        "seeding",
        "text_files",
        "tokens",
    },
    {"model", "workspace"},
    {"sharding"},
    {"schedule", "throughput", "live_state", "hardware", "checkpoint", "tokenizer", "batches", "optim"}
    | {"tracking", "report", "export", "describe", "packages", "tables", "kernels", "linear_cross_entropy"},
    {"corpus", "evaluate", "generate", "fused", "step", "failure", "compare", "pipeline", "preflight"},
    {"trainer", "micro_batch", "selection", "tidy"},
    {"launch", "encode", "assembly"},
    {"training_stage", "tokenize_stage"},
]
"""From the lowest; a module imports from lower layers only."""

PURE = ("schedule", "throughput", "journal", "errors")
"""These need nothing but the standard library."""


def layer_of(module: str) -> int:
    name = module.split(".")[1]
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def modules() -> list[str]:
    files = (ROOT / "src" / "smollm").rglob("*.py")
    names = [file.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".") for file in files]
    return sorted(name.removesuffix(".__init__") for name in names if name != "smollm.__init__")


def packages(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_go_to_a_lower_layer_only(module: str) -> None:
    path = path_of(module)
    assert path is not None
    for other in imports(path):
        if other == "smollm" or other.split(".")[1] == module.split(".")[1]:
            continue
        assert layer_of(other) < layer_of(module), f"{module} imports {other}"


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
    path = path_of(f"smollm.{name}")
    assert path is not None
    assert packages(path) - {"smollm"} <= set(sys.stdlib_module_names)


def test_the_config_is_free_of_torch() -> None:
    for module in modules():
        if module.startswith("smollm.config"):
            assert "torch" not in packages(path_of(module) or Path())


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_the_files_that_a_stage_is_made_of(stage: str) -> None:
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    code = [path for path in entry["deps"] if path.endswith(".py")]
    assert sorted(code) == sorted(closure(f"stages.{stage}"))


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_the_params_that_a_stage_reads(stage: str) -> None:
    declared = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["params"])
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
    }
    whole = [
        node for node in ast.walk(tree) if isinstance(node, ast.keyword) and getattr(node.value, "id", "") == "config"
    ]
    assert not whole, "a stage passes sections on, not the whole configuration"
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


def test_the_readmes_tree_is_the_repositorys() -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.S)
    assert block, "README.md has a tree"
    shown: set[str] = set()
    folders: list[str] = []
    for line in block.group(1).splitlines():
        match = re.match(r"((?:  )*)(\S+)", line)
        if not match:
            continue
        depth, name = len(match.group(1)) // 2, match.group(2)
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        else:
            shown.add("/".join([*folders, name]))
    outputs = re.compile(r"(dvc\.lock|reports/.*|data/raw/.*\.dvc|.*\.gitkeep)$")
    assert shown == {path for path in tracked() if not outputs.match(path)}


def test_the_tests_that_the_docs_name_are_there() -> None:
    for document in (ROOT / "docs").rglob("*.md"):
        for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", document.read_text()):
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{document.name}: {file}::{name}"


def test_no_absolute_path_or_registry_is_committed() -> None:
    for name in ("requirements.lock", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert "://" not in text.replace("sqlite://", ""), name
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.!]+", line) for line in pins if not line.startswith("#"))
    assert "torch==2.13.0" in pins
