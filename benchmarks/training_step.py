"""Time training steps as shipped beside others', in one launch: `make bench`.

    PYTHONPATH=src python3 benchmarks/training_step.py [--preset smollm-135m] [--rounds 2] [--variants "ours muon"]

The variants take turns, round after round, each in a process of its own: what one leaves in memory, or
the card's temperature, counts for no other. Each does full optimizer steps on random
tokens: batch to the device, forward and backward, clipping, AdamW or Muon, and a look at the loss.

    plain loop             the plain model under bf16 autocast, uncompiled; AdamW as torch has it by default
    transformers eager     its LlamaForCausalLM, float32 weights, bf16 autocast (on a CPU: float32); fused AdamW
    transformers compiled  the same with its loss in one torch.compile
    ours adamw, ours muon  the pipeline's Trainer.take_step, on what the pipeline chooses for the device
    ours adamw masked, ours muon masked
                           the same with `mask_documents`, in documents of 800 tokens on average; only if
                           `--variants` names them

A step's time is the median over all rounds. First step: from before the model is built to the end of
the first step, in the first round, with compiler caches of its own that are empty; imports are not
counted. Peak memory is the allocator's (on a CPU the process's). MFU counts 6 FLOPs for each matrix
weight and token and 12·L·N·D·T for attention, with no discount for the causal mask, over the data
sheet's rate; the next column has the rate of one large bf16 product, measured in the same launch, in
its place. The parts of a step are the times of its kernels by what they do; Muon's own products are
among the products.
"""

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch.nn.utils import clip_grad_norm_

from smollm.config.file import Config, load
from smollm.config.runtime import Precision
from smollm.config.training import OptimizerKind
from smollm.device import hardware
from smollm.device.group import Group
from smollm.model.llama import LlamaForCausalLM
from smollm.model.throughput import flops_per_token, peak_tflops
from smollm.state.journal import Journal
from smollm.training.assembly import assemble
from smollm.training.batches import Batches
from smollm.training.checkpoint_store import CheckpointStore
from smollm.training.data import TrainingData
from smollm.training.records import Records
from smollm.training.settings import Settings
from smollm.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "cuda": ("plain loop", "transformers eager", "transformers compiled", "ours adamw", "ours muon"),
    "cpu": ("transformers eager", "ours adamw", "ours muon"),
}
RATE = 1e-3
DOCUMENT = 800
"""Tokens of a document, on average."""
ANSWER = "answer: "
"""What a line begins with that a worker writes for the process that asked."""

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


def with_kind(config: Config, kind: OptimizerKind) -> Config:
    """`config` with this optimizer, and a weight decay that does not depend on the size of a text."""
    optimizer = dataclasses.replace(config.pretrain.optimizer, kind=kind, weight_decay=0.1, weight_decay_epochs=None)
    return dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, optimizer=optimizer))


def our_step(
    config: Config, machine: hardware.Hardware, tokens: np.ndarray, directory: Path, group: Group | None = None
) -> Callable[[], tuple[float, float]]:
    """The pipeline's own step, built as a stage builds it; it returns loss and gradient norm.

    Args:
        group: the processes that take it together; by default this one alone.
    """
    training, evaluation = config.pretrain, dataclasses.replace(config.evaluation, prompts=("a",))
    rows, length = training.sequences_per_step, training.sequence_length
    settings = Settings("pretrain", config.seed, config.model, training, evaluation, config.runtime)
    data = TrainingData(
        Tokenizer(models.BPE(vocab={character: id for id, character in enumerate("abc")}, merges=[])),
        0,
        Batches(tokens, rows, length, config.seed, "pretrain"),
        np.zeros((1, length + 1), np.int64),
    )
    torch.manual_seed(config.seed)
    assembly = assemble(settings, data, machine, group or Group.single(), print)
    journal = Journal(directory / "journal.jsonl")
    store = CheckpointStore(directory / "checkpoints", 1, "benchmark")
    trainer = Trainer(settings, data, assembly, Records(journal, store, lambda *_: None))

    def step() -> tuple[float, float]:
        numbers = trainer.take_step(RATE)
        trainer.done += 1
        return numbers

    return step


def other_step(variant: str, config: Config, machine: hardware.Hardware) -> Callable[[], object]:
    """A plain loop's step."""
    if machine.device.type == "cpu":
        machine = dataclasses.replace(machine, precision=Precision.FP32)
    model: torch.nn.Module
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    if variant == "plain loop":
        model = plain = LlamaForCausalLM(config.model).to(machine.device)
        loss = plain.loss
    else:
        import transformers

        shape = {**dataclasses.asdict(config.model), "attn_implementation": "sdpa", "use_cache": False}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).to(machine.device)  # type: ignore[arg-type]

        def cross_entropy(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = model(ids).logits.float().flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, targets.flatten())

        loss = torch.compile(cross_entropy) if variant == "transformers compiled" else cross_entropy
    fused = None if variant == "plain loop" else True
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    training = config.pretrain
    generator = np.random.default_rng(0)
    size = (training.sequences_per_step, training.sequence_length + 1)

    def step() -> None:
        ids = generator.integers(0, config.model.vocab_size, size)
        batch = torch.from_numpy(ids).to(machine.device)
        with machine.autocast():
            value = loss(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        value.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), training.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        value.item()

    return step


def parts_of(step: Callable[[], object], steps: int = 3) -> dict[str, float]:
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


def serve(variant: str, config: Config) -> None:
    """Time one variant once for each line read from standard input; print times and memory."""
    machine = hardware.choose(config.runtime)
    rows, length = config.pretrain.sequences_per_step, config.pretrain.sequence_length
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, 200 * rows * length).astype(np.uint16)
    is_ours = variant.startswith("ours")
    step: Callable[[], object] | None = None
    if variant.endswith("masked"):
        tokens[np.random.default_rng(1).random(len(tokens)) < 1 / DOCUMENT] = 0  # the end of a document
        config = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, mask_documents=True))
    machine.synchronize()
    print(f"{ANSWER}{{}}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        for line in sys.stdin:
            question = json.loads(line)
            began = time.perf_counter()
            if is_ours:
                kind = OptimizerKind(variant.split()[1])
                step = our_step(with_kind(config, kind), machine, tokens, Path(tempfile.mkdtemp(dir=directory)))
            elif step is None:
                step = other_step(variant, config, machine)
            answer = turn(step, machine, began, question["seconds"])
            if question["parts"]:
                answer["parts"] = parts_of(step)
            if is_ours:  # its graphs hold their memory as long as it lives
                step = None
            gc.collect()
            torch.cuda.empty_cache()
            print(ANSWER + json.dumps(answer), flush=True)


def turn(step: Callable[[], object], machine: hardware.Hardware, began: float, seconds: float) -> dict[str, Any]:
    step()
    machine.synchronize()
    first = time.perf_counter() - began
    for _ in range(3):  # the second is captured, or compiled again
        step()
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return {"times": times, "first": first, "memory": machine.peak_memory_gib()}


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


class Worker:
    """A process with empty compiler caches that times one variant at one shape, whenever it is asked to."""

    def __init__(self, arguments: list[str], caches: str) -> None:
        """
        Args:
            arguments: of this script.
            caches: a folder without a space in its name, which torch would not pass on to the C++ compiler whole.
        """
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
            "TRITON_CACHE_DIR": f"{caches}/triton",
        }
        command = [sys.executable, __file__, *arguments]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> dict[str, Any] | None:
        """Its next answer; None if it failed. All else that it prints is passed on."""
        for line in self._process.stdout or ():
            if line.startswith(ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return answer
            print(line, end="", file=sys.stderr)
        return None

    def ask(self, **question: object) -> dict[str, Any] | None:
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return None
        return self.answer()

    def close(self) -> None:
        self._process.communicate()


def compare(preset: str, shapes: list[str], variants: list[str], rounds: int, seconds: float) -> None:
    began = time.perf_counter()
    config = load(ROOT / "presets" / f"{preset}.yaml")
    machine = hardware.choose(config.runtime)
    is_cuda = machine.device.type == "cuda"
    results: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    rate = product_rate() if is_cuda else None
    for shape in shapes:
        with tempfile.TemporaryDirectory() as caches:
            workers = {
                name: Worker(["--preset", preset, "--shapes", shape, "--serve", name], f"{caches}/{index}")
                for index, name in enumerate(variants)
            }
            for worker in workers.values():  # all have started before the first turn
                worker.answer()
            for number in range(1, rounds + 1):
                for name, worker in workers.items():
                    parts = is_cuda and name.startswith("ours") and number == rounds
                    done = worker.ask(seconds=seconds, parts=parts)
                    took = f"{1000 * statistics.median(done['times']):.1f} ms" if done else "failed"
                    print(f"{shape}, round {number} of {rounds}, {name}: {took}", file=sys.stderr, flush=True)
                    results[shape, name] += [done] if done else []
            for worker in workers.values():
                worker.close()
    print(f"{machine.name}, torch {torch.__version__}, transformers {version('transformers')}, {rounds} rounds")
    if rate:
        print(f"bf16 product of 8192x8192x8192: {rate / 1e12:.0f} TFLOP/s")
    for shape in shapes:
        print_table(shape, {name: results[shape, name] for name in variants}, config, machine, rate)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


def print_table(
    shape: str, results: dict[str, list[dict[str, Any]]], config: Config, machine: hardware.Hardware, rate: float | None
) -> None:
    rows, length = map(int, shape.split("x"))
    flops = flops_per_token(config.model, length)
    peak = peak_tflops(machine.name) if machine.device.type == "cuda" else None
    print(f"\n{shape} tokens a step\n")
    print("| | ms a step | tokens/s | MFU | of the product's rate | peak memory | first step |")
    print("|---|---|---|---|---|---|---|")
    for variant, turns in results.items():
        if not turns:
            print(f"| {variant} | failed | | | | | |")
            continue
        step = statistics.median(seconds for turn in turns for seconds in turn["times"])
        speed = rows * length / step
        shares = [f"{100 * speed * flops / most:.1f} %" if most else "-" for most in (peak and peak * 1e12, rate)]
        cells = [
            variant,
            f"{1000 * step:.1f}",
            f"{speed:,.0f}",
            *shares,
            f"{turns[0]['memory']:.1f} GiB",
            f"{turns[0]['first']:.1f} s",
        ]
        print("| " + " | ".join(cells) + " |")
    for variant, turns in results.items():
        parts = turns[-1].get("parts") if turns else None
        if parts:
            shares = [f"{name} {ms:.1f}" for name, ms in sorted(parts.items(), key=lambda item: -item[1])]
            print(f"\n{variant}, ms of a step on the GPU: {', '.join(shares)}; {sum(parts.values()):.1f} in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="smollm-135m on a GPU, tiny on a CPU, unless said otherwise")
    parser.add_argument("--shapes", help="sequences x tokens, e.g. 32x2048,32x256")
    parser.add_argument("--variants", help="comma-separated; by default all but those with masked documents")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed steps in a turn, five steps at least")
    parser.add_argument("--serve", metavar="VARIANT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    preset = arguments.preset or ("smollm-135m" if torch.cuda.is_available() else "tiny")
    config = load(ROOT / "presets" / f"{preset}.yaml")
    own = f"{config.pretrain.sequences_per_step}x{config.pretrain.sequence_length}"
    shapes = (arguments.shapes or ("32x2048,32x256" if preset == "smollm-135m" else own)).split(",")
    if arguments.serve:
        serve(arguments.serve, with_shape(config, *map(int, shapes[0].split("x"))))
    else:
        usual = VARIANTS["cuda" if torch.cuda.is_available() else "cpu"]
        variants = arguments.variants.split(",") if arguments.variants else list(usual)
        compare(preset, shapes, variants, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
