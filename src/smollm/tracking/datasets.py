"""Token files as MLflow's datasets."""

from pathlib import Path

from smollm.state.live_state import LiveState
from smollm.state.tokens import read_manifest, token_directory, tokens_path
from smollm.tracking.run_record import Dataset


def token_dataset(state: LiveState, stage: str, split: str, context: str) -> Dataset:
    """A split of the text of `stage`, as another stage or `stage` itself uses it.

    Args:
        state: of the stage that uses it.
        stage: whose text it is.
        split: of that text.
        context: what it is used for, training or validation.

    Raises:
        CorpusError: there are no token files.
    """
    path = token_directory(Path(), stage)
    counts = read_manifest(state.workspace.directory / path)[split]
    return Dataset(f"{stage}/{split}", state.inputs[str(path)] or "", context, str(tokens_path(path, split)), counts)
