"""What is said of states that an edit has abandoned and that are kept: what they are, the way back, the way out."""

from typing import Any

from smollm.state.saved import SavedState
from smollm.tracking.provenance import differences

_NAMED = 3
"""Differences from the present version that fit into the line."""

_LONGEST_EDIT = 60


def kept_line(state: SavedState, inputs: dict[str, str | None], params: dict[str, Any]) -> str:
    """A line on an abandoned state.

    Args:
        state: of a stage that goes on, or has finished, with other inputs or params.
        inputs: the digest of each of the stage's dependencies now, by path.
        params: the stage's params now.
    """
    version = state.version
    params_then, inputs_then = version.get("params", {}), version.get("inputs", {})
    edits = differences(params_then, params)
    edits += [f"another {path}" for path, digest in inputs_then.items() if digest != inputs.get(path)]
    shown = [_shortened(edit) for edit in edits[:_NAMED]]
    shown += [f"{len(edits) - _NAMED} more"] if len(edits) > _NAMED else []
    which = f", which has {', '.join(shown)}" if shown else ""
    done = "finished" if state.is_complete else f"at step {step}" if (step := state.step) else "unfinished"
    return (
        f"{state.stage}: keeping .resume/{state.name} ({done}, {format_bytes(state.bytes)}){which}; undo the edit (or "
        f"`git checkout` its commit) and `dvc repro` continues it; `make drop STATE={state.name}` removes it"
    )


def format_bytes(number: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"


def _shortened(edit: str) -> str:
    edit = " ".join(edit.split())
    return edit if len(edit) <= _LONGEST_EDIT else f"{edit[:_LONGEST_EDIT]}…"
