"""Measure the finetuned model. Run by DVC as stage `evaluate`, which is optional: `make evaluate`."""

from smollm.config.file import load
from smollm.evaluate.stage import EvaluateStage
from smollm.stage.run import main
from smollm.state.workspace import Workspace
from stages import WORKSPACE


def evaluate() -> None:
    workspace = Workspace.find(WORKSPACE).with_params()
    config = load(WORKSPACE / "params.yaml")
    EvaluateStage(
        workspace=workspace,
        seed=config.seed,
        evaluate=config.evaluate,
        finetune=config.finetune,
        runtime=config.runtime,
        tracking=config.tracking,
    ).run()


if __name__ == "__main__":
    main(evaluate)
