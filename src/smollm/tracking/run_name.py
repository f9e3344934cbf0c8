"""The name of a run in MLflow: stage, preset, what differs from the preset, and DVC's experiment."""

from smollm.config.file import read_values
from smollm.state.workspace import Workspace
from smollm.tracking import provenance
from smollm.tracking.console import shortened

_SHOWN_DIFFERENCES = 4
_NAME_CHARACTERS = 250
"""As many as the databases of MLflow take."""
_DIFFERENCE_CHARACTERS = 40


def run_name(stage: str, workspace: Workspace) -> str:
    words = [stage, *_differences(stage, workspace), provenance.dvc_state().get("dvc.experiment")]
    return shortened(" ".join(filter(None, words)), _NAME_CHARACTERS)


def _differences(stage: str, workspace: Workspace) -> list[str]:
    """The preset that the params come from, and the first few of the stage's settings that differ from it."""
    preset = str(read_values(workspace.directory / "params.yaml").get("preset"))
    base = workspace.directory / "presets" / f"{preset}.yaml"
    changed = provenance.differences(workspace.params(stage), read_values(base)) if base.exists() else []
    shown = [shortened(setting, _DIFFERENCE_CHARACTERS) for setting in changed[:_SHOWN_DIFFERENCES]]
    more = [f"+{len(changed) - _SHOWN_DIFFERENCES}"] if len(changed) > _SHOWN_DIFFERENCES else []
    return [preset, *shown, *more]
