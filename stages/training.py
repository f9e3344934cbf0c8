"""What the entry points `pretrain` and `finetune` share."""

from smollm.config.file import load
from smollm.state.workspace import Workspace
from smollm.training.data import resolve_epochs
from smollm.training.settings import Settings
from smollm.training.stage import TrainingStage
from stages import WORKSPACE


def train(stage: str, continues: str | None = None) -> None:
    """Run a training stage as params.yaml describes it; `continues` names the stage whose checkpoint it starts from."""
    workspace = Workspace.find(WORKSPACE).with_params()
    config = load(WORKSPACE / "params.yaml")
    settings = Settings(
        stage=stage,
        seed=config.seed,
        model=config.model,
        training=resolve_epochs(config.training(stage), stage, WORKSPACE),
        evaluation=config.evaluation,
        runtime=config.runtime,
    )
    TrainingStage(settings, workspace, config.tracking, continues).run()
