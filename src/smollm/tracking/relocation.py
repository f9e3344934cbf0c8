"""Keeps MLflow's artifacts findable in a repository that was moved or copied.

MLflow's database holds the absolute address of each run's artifacts. After `mv` a new run would bring the old folder
back; after `cp -r` the copy would write into the original. The addresses of experiments, which this project sets,
reveal both; all addresses below the old folder are then rewritten to the new one.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database that hold addresses of artifacts."""

_BUSY_SECONDS = 20.0


def artifact_location(root: Path, experiment: str) -> str:
    """Address of an experiment's artifacts below the folder `mlruns` of its repository."""
    return (root / "artifacts" / experiment).as_uri()


def follow(database: Path, root: Path) -> None:
    """Rewrite addresses of artifacts that lie where the repository was before.

    Args:
        database: MLflow's SQLite file, if it exists.
        root: the folder `mlruns` that holds it now.

    Raises:
        sqlite3.Error: the file is no database, or is busy for longer than 20 s.
    """
    if not database.exists():
        return
    with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection, connection:
        columns = [(table, column) for table, column in _ADDRESSES if _has_column(connection, table, column)]
        if ("experiments", "artifact_location") not in columns:
            return
        for before in set(_former_roots(connection, root)):
            for table, column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (f"{root.as_uri()}/", len(before) + 2, len(before) + 1, f"{before}/"),
                )


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in connection.execute(f"PRAGMA table_info({table})"))


def _former_roots(connection: sqlite3.Connection, root: Path) -> Iterator[str]:
    """Addresses of `root` at the time its experiments were created, where they differ from today's."""
    for name, location in connection.execute("SELECT name, artifact_location FROM experiments").fetchall():
        below_root = artifact_location(root, name).removeprefix(root.as_uri())
        before = str(location).removesuffix(below_root)
        path = Path(url2pathname(urlsplit(before).path))
        is_ours = before != location and before.startswith("file:") and path.name == root.name
        if is_ours and not (path.exists() and path.samefile(root)):
            yield before
