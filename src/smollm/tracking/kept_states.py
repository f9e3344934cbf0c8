"""The line on a state that an edit has abandoned: what it is, how to resume it and how to remove it."""

from typing import Any

from smollm.state.saved_state import SavedState
from smollm.tracking.console import shortened
from smollm.tracking.provenance import differences

_NAMED_EDITS = 3
"""Edits that are named in the line; further ones are only counted."""

_EDIT_CHARACTERS = 60


def kept_state_line(state: SavedState, inputs: dict[str, str | None], params: dict[str, Any]) -> str:
    """A line on an abandoned state.

    Args:
        state: of a stage that now runs, or has finished, with other inputs or params.
        inputs: the digest of each of the stage's dependencies now, by path.
        params: the stage's params now.
    """
    then = state.fingerprinted
    params_then, inputs_then = then.get("params", {}), then.get("inputs", {})
    edits = differences(params_then, params)
    edits += [f"another {path}" for path, digest in inputs_then.items() if digest != inputs.get(path)]
    shown = [shortened(edit, _EDIT_CHARACTERS) for edit in edits[:_NAMED_EDITS]]
    shown += [f"{len(edits) - _NAMED_EDITS} more"] if len(edits) > _NAMED_EDITS else []
    which = f", which has {', '.join(shown)}" if shown else ""
    done = "finished" if state.is_complete else f"at step {step}" if (step := state.step) else "unfinished"
    return (
        f"{state.stage}: keeping .resume/{state.name} ({done}, {format_bytes(state.bytes)}){which}; undo the edit (or "
        f"`git checkout` its commit) and `dvc repro` continues it; `make drop STATE={state.name}` removes it"
    )


def format_bytes(number: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"
