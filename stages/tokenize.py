"""Turn text into tokens. Run by DVC as stage `tokenize`."""

from smollm import preflight
from smollm.config.file import load
from smollm.live_state import Workspace
from smollm.pipeline import main
from smollm.tokenize_stage import TokenizeStage
from stages import WORKSPACE


def tokenize() -> None:
    config = load(WORKSPACE / "params.yaml")
    preflight.refuse_endless(Workspace.find(WORKSPACE))
    TokenizeStage(
        workspace=Workspace.find(WORKSPACE),
        corpus=config.corpus,
        tokenizer=config.tokenizer,
        tracking=config.tracking,
    ).run()


if __name__ == "__main__":
    main(tokenize)
