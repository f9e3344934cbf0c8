"""The project's import graph, read from its source without running it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ORDER = (
    {"errors"},
    {"config"},
    {"state", "device"},
    {"tracking", "model"},
    {"stage"},
    {"operate"},
    {"corpus", "training"},
    {"evaluate", "sample", "share", "sweep"},
)
"""Packages by role; each imports only from sets to the left of its own."""

OBSERVERS = {
    "smollm.tracking": "tells people and MLflow; nothing it does reaches an output but the run's id in run.json",
    "smollm.operate": "refuses, starts or tidies up a stage; changes nothing that it computes",
    "smollm.config.runtime": "says where and how to run; accepted numerical noise",
    "smollm.config.tracking": "says what MLflow is told",
    "smollm.config.file": "refuses a bad file as a whole; a stage's own sections are its dependencies",
}
"""Packages and modules that a stage may import without depending on them, each with the reason."""


def path_of(module: str) -> Path | None:
    """The file of one of the project's own modules."""
    for base in (ROOT / "src", ROOT):
        for candidate in (base / f"{module.replace('.', '/')}.py", base / module.replace(".", "/") / "__init__.py"):
            if candidate.exists():
                return candidate
    return None


def is_observer(module: str) -> bool:
    return any(module == observer or module.startswith(f"{observer}.") for observer in OBSERVERS)


def imports(path: Path) -> Iterator[str]:
    """The project's own modules that a file imports, anywhere in it, parent packages included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                module = ".".join(parts[:end])
                if parts[0] in ("smollm", "stages") and path_of(module):
                    yield module


def closure(module: str) -> set[str]:
    """Files, relative to the root, that a stage's module imports directly or indirectly, observers left out."""
    found: set[str] = set()
    waiting = [module, module.rpartition(".")[0]]
    while waiting:
        name = waiting.pop()
        path = path_of(name)
        assert path is not None, name
        relative = path.relative_to(ROOT).as_posix()
        if not is_observer(name) and relative not in found:
            found.add(relative)
            waiting += imports(path)
    return found


def code_of(dependencies: list[str]) -> set[str]:
    """The Python files that a stage's `deps` of dvc.yaml name, one by one or by folder."""
    files: set[str] = set()
    for dependency in dependencies:
        path = ROOT / dependency
        if dependency.split("/")[0] in ("src", "stages"):
            inside = path.rglob("*.py") if path.is_dir() else [path]
            files |= {file.relative_to(ROOT).as_posix() for file in inside}
    return files
