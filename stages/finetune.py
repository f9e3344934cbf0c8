"""Continue from the checkpoint of `pretrain` on other text. Run by DVC as stage `finetune`."""

from smollm.config.file import load
from smollm.stage.run import main
from smollm.state.workspace import Workspace
from smollm.training.data import resolve_steps
from smollm.training.settings import Settings
from smollm.training.stage import TrainingStage
from stages import WORKSPACE


def finetune() -> None:
    workspace = Workspace.find(WORKSPACE).with_params()
    config = load(WORKSPACE / "params.yaml")
    settings = Settings(
        stage="finetune",
        seed=config.seed,
        model=config.model,
        training=resolve_steps(config.finetune, "finetune", WORKSPACE),
        evaluation=config.evaluation,
        runtime=config.runtime,
    )
    TrainingStage(settings, workspace, config.tracking, continues="pretrain").run()


if __name__ == "__main__":
    main(finetune)
