"""Turn text into tokens. Run by DVC as stage `tokenize`."""

from smollm.config.file import load
from smollm.corpus.stage import TokenizeStage
from smollm.operate import preflight
from smollm.stage.run import main
from smollm.state.workspace import Workspace
from stages import WORKSPACE


def tokenize() -> None:
    workspace = Workspace.find(WORKSPACE).with_params()
    config = load(WORKSPACE / "params.yaml")
    preflight.refuse_too_long(workspace)
    TokenizeStage(
        workspace=workspace,
        corpus=config.corpus,
        tokenizer=config.tokenizer,
        tracking=config.tracking,
    ).run()


if __name__ == "__main__":
    main(tokenize)
