"""The project's import graph, read from its source without running it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

OBSERVERS = {
    "smollm.tracking": "tells MLflow; nothing it does reaches an output but the run's id in run.json",
    "smollm.tracking.store": "the same",
    "smollm.tracking.delivery": "the same",
    "smollm.tracking.outbox": "the same",
    "smollm.tracking.tracker": "the same",
    "smollm.provenance": "describes the run to MLflow",
    "smollm.preflight": "refuses what would take too long or too much room, or does not fit together",
    "smollm.progress": "prints",
    "smollm.compare": "reads finished runs",
    "smollm.tidy": "removes live states",
    "smollm.launch": "starts processes, and says how they ended",
    "smollm.config.runtime": "says where and how; accepted numerical noise",
    "smollm.config.tracking": "says what MLflow is told",
    "smollm.config.file": "refuses a bad file as a whole; a stage's own sections are its dependencies",
}
"""Modules that a stage may import without depending on them, each with the reason."""


def path_of(module: str) -> Path | None:
    """The file of one of the project's own modules."""
    for base in (ROOT / "src", ROOT):
        for candidate in (base / f"{module.replace('.', '/')}.py", base / module.replace(".", "/") / "__init__.py"):
            if candidate.exists():
                return candidate
    return None


def imports(path: Path) -> Iterator[str]:
    """The project's own modules that a file imports, anywhere in it, packages on the way included."""
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
    """Files, relative to the root, that a stage's module is made of, observers left out."""
    found: set[str] = set()
    waiting = [module, module.rpartition(".")[0]]
    while waiting:
        name = waiting.pop()
        path = path_of(name)
        assert path is not None, name
        relative = path.relative_to(ROOT).as_posix()
        if name not in OBSERVERS and relative not in found:
            found.add(relative)
            waiting += imports(path)
    return found
