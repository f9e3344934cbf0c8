"""Time training steps as shipped beside others', in one launch: `make bench`.

    PYTHONPATH=src python3 benchmarks/training_step.py [--preset smollm-135m] [--rounds 2]

The variants take turns, round after round, each turn in a process of its own: what one leaves in
memory, or the card's temperature, counts for no other. Each does full optimizer steps on random
tokens: batch to the device, forward and backward, clipping, AdamW or Muon, and a look at the loss.

    predecessor            the plain model under bf16 autocast, uncompiled; AdamW as torch has it by default
    transformers eager     its LlamaForCausalLM, float32 weights, bf16 autocast (on a CPU: float32); fused AdamW
    transformers compiled  the same with its loss in one torch.compile
    ours adamw, ours muon  the pipeline's Trainer.take_step, on what the pipeline chooses for the device

A step's time is the median over all rounds. First step: from before the model is built to the end of
the first step, in the first round, with empty compiler caches; imports are not counted. Peak memory is
the allocator's. MFU counts 6 FLOPs for each matrix weight and token and 12·L·N·D·T for attention, with no
discount for the causal mask, over the data sheet's rate and over that of one large bf16 product measured
in the same launch. The parts of a step are the times of its kernels by what they do.
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
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch.nn.utils import clip_grad_norm_

from smollm import hardware
from smollm.batches import Batches, validation_windows
from smollm.checkpoint import CheckpointStore
from smollm.config.file import Config, load
from smollm.config.runtime import Precision
from smollm.config.training import OptimizerKind
from smollm.evaluate import Evaluator
from smollm.journal import Journal
from smollm.micro_batch import rehearse
from smollm.model import LlamaForCausalLM
from smollm.optim import Optimizer
from smollm.throughput import flops_per_token, peak_tflops
from smollm.trainer import Plan, Trainer

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "cuda": ("predecessor", "transformers eager", "transformers compiled", "ours adamw", "ours muon"),
    "cpu": ("transformers eager", "ours adamw", "ours muon"),
}
RATE = 1e-3

PARTS = {
    "attention": ("sdpa", "fmha", "flash", "compute_dot_do_o", "convert_dq"),
    "cross-entropy (without its products)": ("_cross_entropy", "log_softmax", "nll_loss"),
    "norms and residual": ("_add_norm", "rms_norm"),
    "SwiGLU": ("_swiglu", "silu"),
    "rotary positions": ("_rotate",),
    "products": ("nvjet", "gemm", "cutlass", "splitKreduce"),
    "optimizer": ("FusedOptimizer", "FusedAdam"),
    "clipping": ("LpNorm", "BinaryOpScalarTensor"),
}
"""What the names of a step's kernels contain, by what they do; the first that fits."""


def with_shape(config: Config, rows: int, length: int) -> Config:
    training = dataclasses.replace(config.pretrain, sequences_per_step=rows, sequence_length=length)
    return dataclasses.replace(config, pretrain=training)


def our_step(config: Config, kind: OptimizerKind, directory: Path) -> Callable[[], None]:
    """The pipeline's own step, built as a stage builds it."""
    machine = hardware.choose(config.runtime)
    training = dataclasses.replace(config.pretrain, optimizer=dataclasses.replace(config.pretrain.optimizer, kind=kind))
    rows, length = training.sequences_per_step, training.sequence_length
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, 200 * rows * length).astype(np.uint16)
    batches = Batches(tokens, rows, length, config.seed, "pretrain")
    tokenizer = Tokenizer(models.BPE(vocab={character: id for id, character in enumerate("abc")}, merges=[]))
    evaluation = dataclasses.replace(config.evaluation, prompts=("a",))
    model = LlamaForCausalLM(config.model).to(machine.device)
    optimizer = Optimizer(model, training.optimizer, machine.dtype)
    micro_batch = rehearse(model, batches, config.runtime.micro_batch_size, machine, print)
    windows = validation_windows(tokens, length, length, "pretrain")
    trainer = Trainer(
        Plan("pretrain", "benchmark", config.seed, 0, training, evaluation, 250),
        model,
        optimizer,
        batches,
        Evaluator(windows, np.ones(config.model.vocab_size, np.int64), micro_batch, machine),
        tokenizer,
        machine,
        Journal(directory / "journal.jsonl"),
        CheckpointStore(directory / "checkpoints", 1, "benchmark"),
    )

    def step() -> None:
        trainer.take_step(RATE)
        trainer.done += 1

    return step


def other_step(variant: str, config: Config) -> Callable[[], None]:
    """A plain loop's step."""
    machine = hardware.choose(config.runtime)
    if machine.device.type == "cpu":
        machine = dataclasses.replace(machine, precision=Precision.FP32)
    if variant == "predecessor":
        model: torch.nn.Module = LlamaForCausalLM(config.model).to(machine.device)
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = model.loss  # type: ignore[assignment]
    else:
        import transformers

        shape = {**dataclasses.asdict(config.model), "attn_implementation": "sdpa", "use_cache": False}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).to(machine.device)  # type: ignore[arg-type]

        def loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = model(ids).logits.float().flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, targets.flatten())

        if variant == "transformers compiled":
            loss = torch.compile(loss)
    fused = None if variant == "predecessor" else True
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    training = config.pretrain
    chance = np.random.default_rng(0)

    def step() -> None:
        ids = chance.integers(0, config.model.vocab_size, (training.sequences_per_step, training.sequence_length + 1))
        batch = torch.from_numpy(ids).to(machine.device)
        with machine.autocast():
            value = loss(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        value.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), training.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        value.item()

    return step


def parts_of(step: Callable[[], None], steps: int = 3) -> dict[str, float]:
    """Milliseconds of a step that the GPU spends on each part."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    milliseconds: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        part = next((part for part, names in PARTS.items() if any(name in event.key for name in names)), "the rest")
        milliseconds[part] += event.self_device_time_total / 1000 / steps
    return dict(milliseconds)


def turn(variant: str, config: Config, seconds: float, wants_parts: bool) -> dict[str, Any]:
    """One turn of one variant: the times of its steps, and what it needed."""
    machine = hardware.choose(config.runtime)
    machine.synchronize()
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        ours = variant.startswith("ours")
        step = (
            our_step(config, OptimizerKind(variant.split()[1]), Path(directory))
            if ours
            else other_step(variant, config)
        )
        step()
        machine.synchronize()
        first = time.perf_counter() - began
        for _ in range(3):  # the second is captured, or compiled again
            step()
        machine.synchronize()
        times: list[float] = []
        while len(times) < 5 or sum(times) < seconds:
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        memory = machine.peak_memory_gib()
        return {
            "times": times,
            "first": first,
            "memory": memory,
            "parts": parts_of(step) if wants_parts else None,
        }


def product_rate() -> float:
    """FLOP/s of one 8192³ product in bf16: the median of a few."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        began = time.perf_counter()
        matrix @ matrix
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * 8192**3 / statistics.median(times[2:])


def run_turn(arguments: list[str], caches: Path) -> dict[str, Any]:
    """A turn in a process of its own."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
        "TRITON_CACHE_DIR": f"{caches}/triton",
    }
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": done.returncode}
    return json.loads(done.stdout.splitlines()[-1])


def compare(preset: str, shapes: list[tuple[int, int]], rounds: int, seconds: float) -> None:
    config = load(ROOT / "presets" / f"{preset}.yaml")
    machine = hardware.choose(config.runtime)
    variants = VARIANTS[machine.device.type]
    results: dict[tuple[tuple[int, int], str], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as caches:
        rate = run_turn(["--product-rate"], Path(caches))["rate"] if machine.device.type == "cuda" else None
        for one in range(rounds):
            for shape in shapes:
                for variant in variants:
                    wants = ["--parts"] if variant == "ours adamw" and not one and machine.device.type == "cuda" else []
                    shaped = ["--turn", variant, "--shape", "{}x{}".format(*shape), "--seconds", str(seconds)]
                    results[shape, variant].append(run_turn(["--preset", preset, *shaped, *wants], Path(caches)))
    products = f"; bf16 products of 8192³: {rate / 1e12:.0f} TFLOP/s" if isinstance(rate, float) else ""
    print(f"{machine.name}, torch {torch.__version__}, {machine.precision.value}, {rounds} rounds{products}")
    peak = peak_tflops(machine.name) if machine.device.type == "cuda" else None
    for shape in shapes:
        flops = flops_per_token(config.model, shape[1])
        print("\n{}x{} tokens a step\n".format(*shape))
        print("| | ms a step | tokens/s | MFU (data sheet) | MFU (measured) | peak memory | first step |")
        print("|---|---|---|---|---|---|---|")
        for variant in variants:
            print(row(variant, results[shape, variant], shape, flops, peak, rate))
        parts = results[shape, "ours adamw"][0].get("parts")
        if isinstance(parts, dict):
            shares = ", ".join(f"{name} {ms:.1f}" for name, ms in sorted(parts.items(), key=lambda item: -item[1]))
            print(f"\nours adamw, ms of a step: {shares}")


def row(
    variant: str, turns: list[dict[str, Any]], shape: tuple[int, int], flops: float, peak: float | None, rate: Any
) -> str:
    """One line of the table."""
    good = [one for one in turns if "times" in one]
    if not good:
        return f"| {variant} | failed |"
    step = statistics.median(value for one in good for value in one["times"])
    speed = shape[0] * shape[1] / step
    shares = [f"{100 * speed * flops / (peak * 1e12):.1f} %" if peak else "-"]
    shares.append(f"{100 * speed * flops / rate:.1f} %" if isinstance(rate, float) else "-")
    memory = max(one["memory"] for one in good)
    cells = [variant, f"{1000 * step:.1f}", f"{speed:,.0f}", *shares, f"{memory:.1f} GiB", f"{good[0]['first']:.1f} s"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="smollm-135m on a GPU, tiny on a CPU, unless said otherwise")
    parser.add_argument("--shapes", help="sequences x tokens, e.g. 32x2048,32x256")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="of timed steps in a turn")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--product-rate", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.product_rate:
        print(json.dumps({"rate": product_rate()}))
        return
    preset = arguments.preset or ("smollm-135m" if torch.cuda.is_available() else "tiny")
    if arguments.turn:
        config = with_shape(load(ROOT / "presets" / f"{preset}.yaml"), *map(int, arguments.shape.split("x")))
        print(json.dumps(turn(arguments.turn, config, arguments.seconds, arguments.parts)))
        return
    training = load(ROOT / "presets" / f"{preset}.yaml").pretrain
    default = f"{training.sequences_per_step}x{training.sequence_length}"
    wanted = arguments.shapes or ("32x2048,32x256" if preset == "smollm-135m" else default)
    shapes = [(int(rows), int(length)) for rows, length in (shape.split("x") for shape in wanted.split(","))]
    compare(preset, shapes, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
