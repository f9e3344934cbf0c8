"""What dvc.yaml, params.yaml and dvc.lock say about a stage, and the fingerprint computed from it."""

import hashlib
import json
import os
import stat
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from smollm.config.file import read_values
from smollm.state.files import file_digest


@dataclass(frozen=True)
class Workspace:
    """Where a stage runs, and where its repository is."""

    directory: Path
    """The working tree whose dvc.yaml, params and outputs are used."""
    root: Path
    """The repository: the same folder, unless this is one of DVC's temporary folders for an experiment."""
    values: dict[str, Any] | None = None
    """All params as they were when the stage began; None: those in the file now."""

    @classmethod
    def find(cls, directory: Path) -> "Workspace":
        """The workspace at `directory`; DVC names the repository in DVC_ROOT."""
        root = os.environ.get("DVC_ROOT")
        return cls(directory, Path(root) if root else directory)

    def with_params(self) -> "Workspace":
        """A copy that keeps the present params, whatever happens to the file later."""
        return replace(self, values=read_values(self.directory / "params.yaml"))

    def stage(self, name: str) -> dict[str, Any]:
        """The stage's entry in dvc.yaml."""
        return _stages((self._pipeline(name) / "dvc.yaml").read_text(encoding="utf-8"))[name]

    def fingerprint(self, name: str, inputs: dict[str, str | None]) -> str:
        """The fingerprint of the stage as it would run now, with these `inputs`."""
        return fingerprint_of(self.stage(name)["cmd"], inputs, self.params(name))

    @property
    def name(self) -> str:
        """Its path relative to the repository, which survives moving both; ``.`` outside DVC's temporary folders."""
        return os.path.relpath(os.path.realpath(self.directory), os.path.realpath(self.root))

    def inputs(self, name: str) -> dict[str, str | None]:
        """The digest of each of the stage's dependencies, by path."""
        return {path: self.digest(path) for path in self.stage(name)["deps"]}

    def digest(self, path: str) -> str | None:
        """The md5 that DVC gives a file or a folder (its ``.dir`` form) of the workspace; None if it does not exist."""
        absolute = self.directory / path
        try:
            is_folder = stat.S_ISDIR(absolute.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not is_folder:
            return file_digest(absolute, "md5")
        # DVC itself decides what to ignore: .dvcignore, and its own folders
        from dvc.fs import localfs
        from dvc.ignore import DvcIgnoreFilter

        seen = DvcIgnoreFilter(localfs, os.fspath(self.directory)).find(localfs, os.fspath(absolute))
        files = {Path(file).relative_to(absolute).as_posix(): file_digest(Path(file), "md5") for file in seen}
        listing = json.dumps([{"md5": files[file], "relpath": file} for file in sorted(files)])
        return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"

    def recorded_inputs(self, name: str) -> dict[str, str | None]:
        """The digest of each of the stage's dependencies in dvc.lock, by path."""
        return {dependency["path"]: dependency.get("md5") for dependency in self._recorded(name).get("deps", [])}

    def recorded_params(self, name: str) -> dict[str, Any] | None:
        """The values of the stage's params in dvc.lock, None where DVC has no result of it."""
        params: dict[str, Any] | None = self._recorded(name).get("params", {}).get("params.yaml")
        return params

    def params(self, name: str) -> dict[str, Any]:
        """The values of the params that the stage declares."""
        values = read_values(self.directory / "params.yaml") if self.values is None else self.values
        return {key: values.get(key) for key in self.stage(name)["params"]}

    def is_recorded(self, name: str, fingerprint: str) -> bool:
        """Whether dvc.lock holds the result of the stage for this fingerprint."""
        command = self._recorded(name).get("cmd", "")
        return fingerprint_of(command, self.recorded_inputs(name), self.recorded_params(name) or {}) == fingerprint

    def _pipeline(self, name: str) -> Path:
        """The folder of the stage's dvc.yaml: one of its own, for an optional stage, or the workspace."""
        own = self.directory / name
        return own if (own / "dvc.yaml").exists() else self.directory

    def _recorded(self, name: str) -> dict[str, Any]:
        """The stage's entry in dvc.lock, empty where it has none."""
        lock = self._pipeline(name) / "dvc.lock"
        # not by PyYAML, which reads DVC's `1e-05` as a string
        stages = read_values(lock).get("stages", {}) if lock.exists() else {}
        entry: dict[str, Any] = stages.get(name, {})
        return entry


def is_code(dependency: str) -> bool:
    """Whether a stage's dependency is code, not data that DVC or the user keeps."""
    return dependency.split("/")[0] in ("src", "stages")


@lru_cache(maxsize=1)
def _stages(text: str) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = yaml.safe_load(text)["stages"]
    return stages


def fingerprint_of(command: str, inputs: dict[str, str | None], params: dict[str, Any]) -> str:
    """A hash of everything that determines what a stage computes, in 16 hexadecimal digits."""
    text = json.dumps([command, inputs, params], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
