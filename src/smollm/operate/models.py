"""Find a trained model by name, and pull it from the DVC remote if it is not here.

A model is named by its folder, by a revision of the repository (a commit, tag, branch or DVC experiment), or by its
run in MLflow. Revisions and runs record the model's digest in DVC, so nothing has to be checked out.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from smollm.errors import CheckpointError
from smollm.state.files import link_or_copy
from smollm.state.tokens import STAGES
from smollm.state.workspace import Workspace
from smollm.tracking import lookup
from smollm.tracking.mlflow_store import MlflowStore

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.tree import Tree


@dataclass(frozen=True)
class FoundModel:
    """A model that is on this disk, and what names it."""

    directory: Path
    """A Hugging Face folder."""
    shown: str
    """What to call it in a message."""
    stage: str | None = None
    """The stage that made it; None: unknown, as for a folder from elsewhere."""
    revision: str | None = None
    """The commit whose dvc.lock has it, where it was named by a revision."""
    run_id: str | None = None
    """Its run in MLflow, where it was named by that."""


@dataclass(frozen=True)
class _StoredModel:
    """A model in DVC's cache or remote."""

    shown: str
    stage: str
    digest: str
    revision: str | None = None
    run_id: str | None = None


@contextmanager
def find_model(name: str, workspace: Workspace) -> Iterator[FoundModel]:
    """The model that `name` names, in a folder that may be temporary.

    Args:
        name: a folder; or a revision, whose finetuned model is meant unless it ends in ``:pretrain``; or the id of a
            run in MLflow, the start of one, or ``models:/NAME@ALIAS`` for the registry's.
        workspace: whose repository, DVC remote and MLflow store are asked.

    Raises:
        CheckpointError: nothing has this name, or what has it is neither here nor in the DVC remote.
    """
    directory = workspace.directory / name
    if directory.is_dir():
        outputs = {os.path.realpath(workspace.directory / "models" / stage): stage for stage in STAGES}
        yield FoundModel(directory, name, outputs.get(os.path.realpath(directory)))
        return
    repository = _open_repository(workspace.root)
    stored = (
        _by_path(name, workspace)
        or (_by_revision(name, repository) if repository else None)
        or _by_run(name, workspace)
    )
    if stored is None or repository is None:
        raise CheckpointError(
            f"the model must be a folder, a revision of this repository, or a run of MLflow, got {name!r}; "
            "`make repro` trains models/finetune, `dvc exp show` and `make compare` list what there is"
        )
    with tempfile.TemporaryDirectory(dir=repository.tmp_dir, prefix="model-") as folder:
        _restore(repository, stored, Path(folder))
        yield FoundModel(Path(folder), stored.shown, stored.stage, stored.revision, stored.run_id)


def read_revision(path: str, revision: str, workspace: Workspace) -> str | None:
    """The text of a file of the repository at a commit; None where it has none."""
    repository = _open_repository(workspace.root)
    return repository and _read(repository, path, revision)


def _by_path(name: str, workspace: Workspace) -> _StoredModel | None:
    """The model that the workspace's dvc.lock records at this path."""
    lock, path = workspace.directory / "dvc.lock", os.path.normpath(name)
    if not lock.exists():
        return None
    digests = _digests(lock.read_text(encoding="utf-8"))
    return next((_StoredModel(name, stage, digests[stage]) for stage in digests if path == f"models/{stage}"), None)


def _by_revision(name: str, repository: "Repo") -> _StoredModel | None:
    from dvc.exceptions import DvcException
    from dvc.scm import NoSCM, resolve_rev

    revision, _, wanted = name.partition(":")
    stage = wanted or "finetune"
    if isinstance(repository.scm, NoSCM) or stage not in STAGES:
        return None
    try:
        commit = resolve_rev(repository.scm, revision)
    except (DvcException, ValueError):
        return None
    digests = _digests(_read(repository, "dvc.lock", commit) or "")
    if stage not in digests:
        others = " or ".join(f"{revision}:{other}" for other in digests) or "a commit made after `dvc repro`"
        raise CheckpointError(f"{revision}: its dvc.lock must have models/{stage}, got one without; use {others}")
    return _StoredModel(f"models/{stage} of {revision}", stage, digests[stage], revision=commit)


def _by_run(name: str, workspace: Workspace) -> _StoredModel | None:
    if not lookup.can_name_a_run(name):
        return None
    store = MlflowStore.of(workspace.root)
    try:
        runs = lookup.find_runs(store, name)
    except Exception as error:  # whatever a store or the way to it raises
        raise CheckpointError(store.outage(error).removeprefix("ERROR: ")) from None
    if len(runs) > 1:
        names = ", ".join(run.run_id[: len(name) + 4] for run in runs[:4])
        raise CheckpointError(
            f"the start of a run's id must name one run, got {name!r}, which begins {names}; add digits"
        )
    if not runs:
        return None
    (run,) = runs
    stage = run.tags.get("stage", "")
    digest = run.tags.get(f"dvc.out.models/{stage}")
    if not digest:
        raise CheckpointError(
            f"run {run.run_id[:8]}: must have a model, got a run of {stage or 'no stage'} that is {run.status}; use a "
            "finished one of pretrain or finetune (`make compare`)"
        )
    return _StoredModel(f"models/{stage} of run {run.run_id[:8]} ({run.name})", stage, digest, run_id=run.run_id)


def _open_repository(root: Path) -> "Repo | None":
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)  # what it warns of is an error here
    try:
        return Repo(os.fspath(root))
    except NotDvcRepoError:
        return None


def _read(repository: "Repo", path: str, commit: str) -> str | None:
    """The text of a file at a commit."""
    tree = repository.scm.get_fs(commit)
    # the repository of Git may begin above that of DVC
    inside = os.path.relpath(repository.root_dir, repository.scm.root_dir)
    try:
        with tree.open(os.path.normpath(f"/{inside}/{path}"), encoding="utf-8", mode="r") as file:
            text: str = file.read()
    except FileNotFoundError:
        return None
    return text


def _digests(lock: str) -> dict[str, str]:
    """The digest of each model in a dvc.lock, by stage."""
    stages: dict[str, Any] = (yaml.safe_load(lock) or {}).get("stages", {})
    outputs = {out["path"]: out.get("md5", "") for stage in stages.values() for out in stage.get("outs", [])}
    return {stage: outputs[f"models/{stage}"] for stage in STAGES if outputs.get(f"models/{stage}")}


def _restore(repository: "Repo", model: _StoredModel, target: Path) -> None:
    """Link or copy the model's files from DVC's cache; missing ones are pulled first."""
    from dvc_data.hashfile import load
    from dvc_data.hashfile.hash_info import HashInfo

    cache, whole = repository.cache.local, HashInfo("md5", model.digest)
    try:
        if not cache.exists(model.digest):
            repository.cloud.pull([whole])
        files = {key: digest for key, _, digest in cast("Tree", load(cache, whole))}
        missing = [digest for digest in files.values() if not cache.exists(digest.value)]
        if missing:
            repository.cloud.pull(missing)
        for key, digest in files.items():
            link_or_copy(Path(cache.oid_to_path(digest.value)), target.joinpath(*key))
    except Exception as error:  # storages raise what they like
        is_missing = isinstance(error, FileNotFoundError)
        reason = "neither has it" if is_missing else " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{model.shown}: must be in DVC's cache or remote (md5 {model.digest}), got: {reason:.300}; `dvc push` it "
            "where it was trained, or correct the remote in .dvc/config"
        ) from None
