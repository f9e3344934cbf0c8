"""What all trials of a study have in common: their results compare only where all else is the same."""

import subprocess
from typing import Any

from smollm.errors import StateError
from smollm.state.workspace import Workspace, is_code
from smollm.sweep.search import Search
from smollm.sweep.study_file import Study, with_values
from smollm.tracking.provenance import differences

_STAGES = {"pretrain": ("tokenize", "pretrain"), "finetune": ("tokenize", "pretrain", "finetune")}
"""The stages of a trial."""


def common(study: Study, workspace: Workspace) -> dict[str, dict[str, Any]]:
    """The study's spaces, the settings that it does not vary, and the digests of the code, by path."""
    stages = _STAGES[study.stage]
    settings: dict[str, Any] = {key: value for stage in stages for key, value in workspace.params(stage).items()}
    code = {path for stage in stages for path in workspace.stage(stage)["deps"] if is_code(path)}
    return {
        "space": {name: str(space) for name, space in study.params.items()},
        "settings": with_values(settings, dict.fromkeys(study.params)),
        "code": {path: workspace.digest(path) for path in sorted(code)},
    }


def check_common(study: Study, search: Search, workspace: Workspace) -> None:
    """Note what all trials have in common, or compare it with what was noted.

    Raises:
        StateError: the settings, the code or the spaces were edited since the first trial.
    """
    now, then = common(study, workspace), search.began_with
    if not then:
        search.note_beginning(now)
        return
    edits = differences(now["space"], then["space"]) + differences(now["settings"], then["settings"])
    edits += [f"another {path}" for path, digest in now["code"].items() if digest != then["code"].get(path)]
    edits += [f"no {name}" for name in then["space"] if name not in now["space"]]
    if edits:
        raise StateError(
            f"{study.name}: all trials must have the same code and the same settings but those varied, got "
            f"{', '.join(edits[:3])}; undo the edit to continue, or copy the study to a file of another name"
        )


def check_names(study: Study, search: Search, workspace: Workspace) -> None:
    """
    Raises:
        StateError: the study has no trial yet, but experiments have their names.
    """
    if search.began_with:
        return
    command = ["git", "-C", str(workspace.root), "for-each-ref", "--format=%(refname:lstrip=4)"]
    listed = subprocess.run(
        [*command, f"refs/exps/*/*/{study.name}-*"], capture_output=True, text=True, check=True
    ).stdout.split()
    if taken := [name for name in listed if name.removeprefix(f"{study.name}-").isdecimal()]:
        raise StateError(
            f"{study.name}: its experiments must have names of their own, got {', '.join(taken[:3])} of an earlier "
            f"study; rename the study's file, or `dvc exp remove {' '.join(taken)}`"
        )
