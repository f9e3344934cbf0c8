"""Small checkpoints, and ways to damage their files."""

from pathlib import Path

import torch
from torch import Tensor

from smollm.training.checkpoint import Checkpoint, TrainerState

FINGERPRINT = "0123456789abcdef"
STATE, MODEL, OPTIMIZER = "trainer_state.json", "model.safetensors", "optimizer.safetensors"
AVERAGE = "average.safetensors"


def make(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {
        "model.embed_tokens.weight": torch.randn(7, 5, generator=generator),
        "model.norm.weight": torch.tensor([0.1, -0.0, 1e-45, 3.4e38, float("inf")]),
    }
    moments = {
        "model.norm.weight.exp_avg": torch.randn(5, generator=generator),
        "model.norm.weight.step": torch.tensor(float(step)),
    }
    return Checkpoint(TrainerState(step, "pretrain", FINGERPRINT, None, 0), weights, moments)


def assert_same(ones: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        assert one.dtype == others[name].dtype
        assert one.shape == others[name].shape
        assert one.numpy().tobytes() == others[name].numpy().tobytes(), name


def assert_same_checkpoint(one: Checkpoint | None, other: Checkpoint) -> None:
    assert one is not None
    assert one.state == other.state
    assert_same(one.weights, other.weights)
    assert_same(one.moments, other.moments)
    assert_same(one.average, other.average)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def overwrite(file: Path) -> None:
    file.write_bytes(b"from somewhere else\n")


def flip_first_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def flip_last_bit(file: Path) -> None:
    """Of the newline in the state's case, which is no damage; so of the byte before."""
    content = bytearray(file.read_bytes())
    content[-2 if file.name == STATE else -1] ^= 1
    file.write_bytes(content)


DAMAGES = [truncate, empty, overwrite, flip_first_bit, flip_last_bit, Path.unlink]
