"""Train the model from its initial weights. Run by DVC as stage `pretrain`."""

from smollm.config.file import load
from smollm.stage.run import main
from smollm.state.workspace import Workspace
from smollm.training.data import resolve_steps
from smollm.training.settings import Settings
from smollm.training.stage import TrainingStage
from stages import WORKSPACE


def pretrain() -> None:
    workspace = Workspace.find(WORKSPACE).with_params()
    config = load(WORKSPACE / "params.yaml")
    settings = Settings(
        stage="pretrain",
        seed=config.seed,
        model=config.model,
        training=resolve_steps(config.pretrain, "pretrain", WORKSPACE),
        evaluation=config.evaluation,
        runtime=config.runtime,
    )
    TrainingStage(settings, workspace, config.tracking).run()


if __name__ == "__main__":
    main(pretrain)
