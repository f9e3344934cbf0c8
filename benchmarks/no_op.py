"""How long DVC takes to find that there is nothing to do, with outputs of SmolLM-135M's size in place.

    PYTHONPATH=src:tests python3 benchmarks/no_op.py [--directory /tmp]

Runs the pipeline small in a temporary clone, puts files of full size in place of its weights, moments and
tokens, has DVC record them, and times `dvc status` and `dvc repro` next to `dvc root`, which only starts DVC.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from support.clone import Clone
from support.structure import ROOT

from smollm.config.file import load
from smollm.model.throughput import parameter_count
from smollm.operate.preflight import checkpoint_bytes

COMMANDS = (("root",), ("status",), ("repro",))


def enlarge(clone: Clone) -> float:
    """Give the outputs their full size; gigabytes in all."""
    config = load(ROOT / "presets" / "smollm-135m.yaml")
    weights = 4 * parameter_count(config.model)
    moments = checkpoint_bytes(config.model, config.pretrain) - weights
    sizes = {"data/tokens/pretrain/train.bin": 220_000_000}
    for stage in ("pretrain", "finetune"):
        sizes[f"checkpoints/{stage}/last/model.safetensors"] = weights
        sizes[f"checkpoints/{stage}/last/optimizer.safetensors"] = moments
        sizes[f"models/{stage}/model.safetensors"] = weights // 2
    for path, size in sizes.items():
        file = clone.directory / path
        file.unlink()
        with file.open("wb") as out:
            for start in range(0, size, 1 << 24):
                out.write(os.urandom(min(1 << 24, size - start)))
    clone.dvc("commit", "--force")
    return sum(sizes.values()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="where there is room for 7 GB")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().directory) as directory:
        clone = Clone.of_working_tree(Path(directory) / "project")
        clone.repro()
        print(f"{enlarge(clone):.1f} GB of outputs")
        taken: dict[str, list[float]] = {command[0]: [] for command in COMMANDS}
        for _ in range(6):
            for command in COMMANDS:
                began = time.perf_counter()
                said = clone.dvc(*command).stdout
                taken[command[0]].append(time.perf_counter() - began)
                assert command != ("repro",) or "Running" not in said, said
    start = statistics.median(taken["root"][1:])
    for name, values in taken.items():
        median = statistics.median(values[1:])
        print(f"dvc {name:8} {median:5.2f} s  (first {values[0]:.2f} s)  {median - start:+.2f} s beyond DVC's start")


if __name__ == "__main__":
    main()
