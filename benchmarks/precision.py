"""Train a few steps in each precision that the GPU has, on the same text: `python3 benchmarks/precision.py`.

    PYTHONPATH=src python3 benchmarks/precision.py [--steps 20]

The pipeline's own steps (AdamW, as `training_step.py` drives them) on the bytes of the standard library's
sources, from the same weights and in the same order: the loss shows whether a precision follows bf16, the time
what it costs.
"""

import argparse
import dataclasses
import gc
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from training_step import ROOT, our_step, with_kind

from smollm.config.file import load
from smollm.config.runtime import Precision
from smollm.config.training import OptimizerKind
from smollm.device import hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    config = with_kind(load(ROOT / "presets" / "smollm-135m.yaml"), OptimizerKind.ADAMW)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    tokens = np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8).astype(np.uint16)
    shown = sorted({1, arguments.steps // 4, arguments.steps // 2, arguments.steps})
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| | ms a step | peak memory | loss at " + ", ".join(map(str, shown)) + " |\n|---|---|---|---|")
    for precision in Precision:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch._dynamo.reset()
        machine = hardware.choose(dataclasses.replace(config.runtime, precision=precision))
        times, losses = [], []
        with tempfile.TemporaryDirectory() as directory:
            step = our_step(config, machine, tokens, Path(directory))
            for _ in range(arguments.steps):
                began = time.perf_counter()
                losses.append(step()[0])
                times.append(time.perf_counter() - began)
        del step
        numbers = ", ".join(f"{losses[at - 1]:.4f}" for at in shown)
        milliseconds, memory = 1000 * statistics.median(times[3:]), machine.peak_memory_gib()
        print(f"| {precision.value} | {milliseconds:.1f} | {memory:.1f} GiB | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
