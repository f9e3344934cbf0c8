"""Time training steps in one process and in several, one a GPU, in one launch: `python3 benchmarks/scaling.py`.

    PYTHONPATH=src python3 benchmarks/scaling.py [--processes 1,2] [--rounds 2] [--shard] [--preset smollm-135m]

Weak scaling: each process has the same sequences a step, 32 unless said otherwise, however many there are; with
`--strong` they share as many. The numbers of processes take turns, round after round, each in processes of its own.
A step is the pipeline's (`training_step.py` drives it); its time is rank 0's median over all rounds. The last round
is profiled: how long a step's communication between GPUs takes, and how much of it no computation overlaps.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._C._autograd import DeviceType
from training_step import ANSWER, ROOT, our_step, with_kind, with_shape

from smollm.config.file import Config, load
from smollm.config.training import OptimizerKind
from smollm.device import hardware
from smollm.device.group import Group

Interval = tuple[float, float]

_END_SECONDS = 30.0
"""How long processes may take to end once they have printed their answer."""


def serve(config: Config, seconds: float, profiles: bool) -> None:
    """Time steps as one of a group, which torchrun started."""
    group = Group.join(is_dvc_here=True, has_gpu=torch.cuda.is_available())
    machine = hardware.choose(config.runtime)
    training = config.pretrain
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, 20 * training.tokens_per_step)
    with tempfile.TemporaryDirectory() as directory:
        step = our_step(config, machine, tokens.astype(np.uint16), Path(directory), group)
        for _ in range(15):  # the twelfth is captured
            step()
        times: list[float] = []
        while group.broadcast(sum(times) < seconds):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        exchange = exchange_of(step) if profiles else (0.0, 0.0)
    if group.is_rank_zero:
        answer = {"times": times, "memory": machine.peak_memory_gib(), "exchange": exchange, "name": machine.name}
        print(ANSWER + json.dumps(answer), flush=True)
    del step  # and its graphs
    group.close()


def exchange_of(step: Callable[[], object], steps: int = 3) -> tuple[float, float]:
    """Milliseconds of a step in which GPUs communicate, and those in which they only communicate."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    exchanges: list[Interval] = []
    work: list[Interval] = []
    for event in profile.events() or ():
        if event.device_type == DeviceType.CUDA:
            (exchanges if "nccl" in event.name else work).append((event.time_range.start, event.time_range.end))
    both = length(exchanges + work)
    return length(exchanges) / 1000 / steps, (both - length(work)) / 1000 / steps


def length(intervals: list[Interval]) -> float:
    """Of their union."""
    total, end = 0.0, -1.0
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def measure(count: int, arguments: list[str]) -> dict[str, Any]:
    """Times and memory of rank 0 in a group of `count` processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "4"}
    command += [__file__, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        line = next((line for line in process.stdout or () if line.startswith(ANSWER)), None)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{count} processes did not end by themselves", file=sys.stderr, flush=True)
            process.terminate()  # the agent, which ends them
    if line is None:
        raise SystemExit(f"{count} processes failed")
    answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="smollm-135m")
    parser.add_argument("--kind", default="adamw,muon")
    parser.add_argument("--shape", default="32x2048", help="sequences x tokens of a process (--strong: of a step)")
    parser.add_argument("--processes", help="numbers of them; 1 and as many as there are GPUs, unless said otherwise")
    parser.add_argument("--strong", action="store_true", help="a step of one size, shared by the processes")
    parser.add_argument("--shard", action="store_true", help="weights sharded over the processes (FSDP2)")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="of timed steps in a turn")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows, tokens = map(int, arguments.shape.split("x"))
    if arguments.serve:
        config = load(ROOT / "presets" / f"{arguments.preset}.yaml")
        runtime = dataclasses.replace(
            config.runtime, shard_weights=arguments.shard, activation_checkpointing=arguments.recompute
        )
        config = dataclasses.replace(config, runtime=runtime)
        config = with_shape(with_kind(config, OptimizerKind(arguments.kind)), arguments.serve, tokens)
        serve(config, arguments.seconds, arguments.profile)
        return
    counts = [int(count) for count in (arguments.processes or f"1,{max(2, torch.cuda.device_count())}").split(",")]
    flags = [f"--{name}" for name in ("shard", "recompute") if getattr(arguments, name)]
    scaled = "shared by all" if arguments.strong else "each"
    title = f"{arguments.preset}, {arguments.shape} tokens a step {scaled}, torch {torch.__version__} {' '.join(flags)}"
    for kind in arguments.kind.split(","):
        results: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
        for number in range(1, arguments.rounds + 1):
            for count in counts:
                sequences = rows if arguments.strong else rows * count
                asked = ["--preset", arguments.preset, "--kind", kind, "--shape", arguments.shape, *flags]
                asked += ["--seconds", str(arguments.seconds), "--serve", str(sequences)]
                answer = measure(
                    count, asked + ["--profile"] * (number == arguments.rounds and torch.cuda.is_available())
                )
                results[count].append(answer)
                median = 1000 * statistics.median(answer["times"])
                print(f"round {number}, {kind}, {count} processes: {median:.1f} ms", file=sys.stderr, flush=True)
        print_table(f"{title}, {kind}", results, rows * tokens, arguments.strong)


def print_table(title: str, results: dict[int, list[dict[str, Any]]], tokens: int, is_strong: bool) -> None:
    print(f"\n{next(iter(results.values()))[0]['name']}, {title}\n")
    print("| processes | ms a step | tokens/s | efficiency | exchange, ms | not overlapped | peak memory |")
    print("|---|---|---|---|---|---|---|")
    base: float | None = None
    for count, turns in results.items():
        seconds = statistics.median(seconds for turn in turns for seconds in turn["times"])
        speed = tokens * (1 if is_strong else count) / seconds
        base = base or speed / count
        exchange, alone = turns[-1]["exchange"]
        print(
            f"| {count} | {1000 * seconds:.1f} | {speed:,.0f} | {100 * speed / count / base:.1f} % | {exchange:.1f} | "
            f"{alone:.1f} | {turns[0]['memory']:.1f} GiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
