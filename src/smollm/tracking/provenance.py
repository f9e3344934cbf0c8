"""Where a result comes from: code, environment, data; and the commands that bring it back."""

import configparser
import getpass
import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

_GIT_SECONDS = 60.0


class GitRefused(Exception):
    """Git refuses to read a repository that exists; the message has its reason and its remedy."""


def git_state(workspace: Path) -> dict[str, str]:
    """Commit, branch and dirtiness of the working tree; empty without a Git repository or a commit.

    In one of DVC's temporary experiment folders the commit is the experiment's own. What DVC itself
    removes and rewrites around a stage makes no tree dirty.

    Raises:
        GitRefused: Git does not read the repository, because it belongs to another user, say.
    """
    commit = _git(workspace, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return {}
    branch = _git(workspace, "rev-parse", "--abbrev-ref", "HEAD") or ""
    written = (":!dvc.lock", ":!*/dvc.lock", ":!reports")
    changes = _git(workspace, "status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return {"git.commit": commit, "git.branch": branch, "git.dirty": str(bool(changes)).lower()}


def dvc_state() -> dict[str, str]:
    """The stage and experiment for which DVC runs this process."""
    names = {
        "DVC_STAGE": "dvc.stage",
        "DVC_EXP_NAME": "dvc.experiment",
        "DVC_EXP_BASELINE_REV": "dvc.experiment_baseline",
    }
    return {tag: os.environ[name] for name, tag in names.items() if os.environ.get(name)}


def restore_command(digest: str, paths: list[str]) -> str:
    """Shell commands that bring back the code and params of a result, and its data and checkpoint.

    The commit is the first whose dvc.lock holds the result's digest: made after the run, by hand
    or by `dvc exp run`.

    Args:
        digest: DVC's md5 of an output that no other result has.
        paths: what to pull.
    """
    find = f"commit=$(git log --all --format=%H -S {digest} -- dvc.lock '*/dvc.lock' | tail -n 1)"
    check = '{ test -n "$commit" || { echo "no commit holds this result"; false; }; }'
    return f"{find} && {check} && git checkout $commit && dvc pull --force {' '.join(paths)}"


def dvc_remote(workspace: Path) -> str:
    """Address of DVC's default remote, without user and password; empty if there is none."""
    config = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error):
        config.read([workspace / ".dvc" / "config", workspace / ".dvc" / "config.local"])
    name = config.get("core", "remote", fallback="")
    url = config.get(f"'remote \"{name}\"'", "url", fallback="")
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else url


def differences(values: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """``name=value`` for every setting of `values` that `base` sets otherwise, sections within sections."""
    changed: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            changed += differences(value, base[key])
        elif value != base.get(key):
            changed.append(f"{key}={value}")
    return changed


def environment() -> dict[str, object]:
    """Machine, Python and the version of every installed package."""
    described = (distribution.metadata for distribution in importlib.metadata.distributions())  # read once each
    packages = {metadata["Name"]: metadata["Version"] for metadata in described if metadata["Name"]}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return "unknown"


def flatten(values: dict[str, Any]) -> dict[str, str]:
    """Settings as ``section.name`` to text, from dataclasses (nested ones too) by section."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if is_dataclass(value):
            inner = {f"{name}.{field.name}": getattr(value, field.name) for field in fields(value)}
            flat |= flatten(inner)
        else:
            flat[name] = _text(value)
    return flat


def _text(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)


def _git(workspace: Path, *arguments: str) -> str | None:
    """The output of a Git command; None if there is no repository."""
    command, variables = ["git", "-C", str(workspace), *arguments], {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_GIT_SECONDS, env=variables
        )
    except FileNotFoundError:
        if (workspace / ".git").exists():
            raise GitRefused("git is not installed") from None
        return None
    except (OSError, subprocess.SubprocessError) as error:
        raise GitRefused(str(error)) from None
    if done.returncode and "not a git repository" not in done.stderr and done.stderr.strip():
        raise GitRefused(" ".join(done.stderr.split()))
    return None if done.returncode else done.stdout.strip()
