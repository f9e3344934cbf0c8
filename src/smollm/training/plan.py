"""The plan of a training stage, as it is logged before the first step."""

from pathlib import Path

from smollm.device.hardware import Hardware
from smollm.model.throughput import flops_per_token, parameter_count
from smollm.state.tokens import TRAIN, read_manifest, token_directory
from smollm.tracking import announce
from smollm.training.settings import Settings


def plan_lines(
    settings: Settings, workspace: Path, continues: str | None, first_step: int, hardware: Hardware, processes: int
) -> list[str]:
    """How much the stage computes and on what, how often it reads its text, and the settings derived from that.

    Args:
        settings: of the stage.
        workspace: has the token files.
        continues: the stage whose checkpoint this one starts from, if any.
        first_step: steps of the previous stages.
        hardware: of one process.
        processes: how many train together.
    """
    stage, steps, training, model = settings.stage, settings.steps, settings.training, settings.model
    flops = flops_per_token(model, training.sequence_length)
    plan = announce.training_plan(
        steps, first_step + steps, training.tokens_per_step, flops, parameter_count(model), processes
    )
    computes_on = announce.hardware(hardware.name, hardware.device.type, hardware.precision.value, hardware.compile)
    steps_per_epoch = training.steps_per_epoch(read_manifest(token_directory(workspace, stage))[TRAIN]["tokens"])
    epochs = steps / steps_per_epoch
    lines = [f"{plan}; {computes_on}", announce.epochs(stage, steps, epochs)]
    optimizer = training.optimizer
    if optimizer.weight_decay is not None and optimizer.weight_decay_epochs is not None:
        lines.append(announce.weight_decay(optimizer.weight_decay, optimizer.weight_decay_epochs))
    if continues and training.replay_fraction:
        lines.append(announce.replay(continues, training.replay_fraction))
    if epochs > announce.MANY_EPOCHS:
        lines.append(announce.many_epochs(stage, steps_per_epoch))
    return lines
