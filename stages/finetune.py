"""Go on from the checkpoint of `pretrain`, on other text. Run by DVC as stage `finetune`."""

from smollm.config.file import load
from smollm.live_state import Workspace
from smollm.pipeline import main
from smollm.training_stage import TrainingStage
from stages import WORKSPACE


def finetune() -> None:
    config = load(WORKSPACE / "params.yaml")
    TrainingStage(
        name="finetune",
        workspace=Workspace.find(WORKSPACE),
        seed=config.seed,
        model=config.model,
        training=config.finetune,
        evaluation=config.evaluation,
        runtime=config.runtime,
        tracking=config.tracking,
        continues="pretrain",
    ).run()


if __name__ == "__main__":
    main(finetune)
