"""Time a training step as shipped, next to `transformers`' Llama, in one launch on one device.

    PYTHONPATH=src python3 benchmarks/training_step.py --preset smollm-135m [--variants ours-adamw,...]

Random tokens, bf16 autocast over float32 weights, clipping and the optimizer included; the median
of the steps after a warm-up. Prints a line for each variant: milliseconds, tokens per second, peak
memory, and the seconds that the first step took (compilation).
"""

import argparse
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from smollm import hardware
from smollm.config.file import Config, load
from smollm.config.training import OptimizerKind
from smollm.model import LlamaForCausalLM
from smollm.optim import Optimizer

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
VARIANTS = ("transformers-eager", "transformers-compiled", "ours-eager", "ours-adamw", "ours-muon")


def build(variant: str, config: Config, machine: hardware.Hardware) -> tuple[torch.nn.Module, Loss]:
    """A model of the preset's shape and the function that gives its loss."""
    if variant.startswith("ours"):
        model = LlamaForCausalLM(config.model).to(machine.device)
        if variant != "ours-eager":
            model.compile_parts()
        return model, model.loss
    import transformers

    shape = {**dataclasses.asdict(config.model), "attn_implementation": "sdpa", "use_cache": False}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).to(machine.device)
    call = torch.compile(theirs) if variant == "transformers-compiled" else theirs

    def loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = call(ids).logits.float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, targets.flatten())

    return theirs, loss


def measure(variant: str, config: Config, machine: hardware.Hardware, steps: int) -> None:
    model, loss = build(variant, config, machine)
    kind = OptimizerKind.MUON if variant == "ours-muon" else OptimizerKind.ADAMW
    settings = dataclasses.replace(config.pretrain.optimizer, kind=kind)
    optimizer = Optimizer(model, settings, machine.dtype)
    rows, length = config.pretrain.sequences_per_step, config.pretrain.sequence_length
    seconds = []
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        ids = torch.randint(config.model.vocab_size, (rows, length + 1), device=machine.device)
        machine.synchronize()
        began = time.perf_counter()
        with machine.autocast():
            value = loss(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        value.backward()
        clip_grad_norm_(model.parameters(), config.pretrain.gradient_clip)
        for part in optimizer.parts:
            part.step()
        optimizer.zero_grad()
        machine.synchronize()
        seconds.append(time.perf_counter() - began)
    step = statistics.median(seconds[len(seconds) // 3 :])
    print(
        f"{variant:22}  {1000 * step:8.1f} ms  {rows * length / step:12,.0f} tokens/s  "
        f"{machine.peak_memory_gib():6.1f} GiB  first step {seconds[0]:5.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="smollm-135m")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    config = load(Path(__file__).resolve().parents[1] / "presets" / f"{arguments.preset}.yaml")
    machine = hardware.choose(config.runtime)
    training = config.pretrain
    print(
        f"{machine.name}, torch {torch.__version__}, {machine.precision.value}, "
        f"{training.sequences_per_step}x{training.sequence_length} tokens a step"
    )
    for variant in arguments.variants.split(","):
        measure(variant, config, machine, arguments.steps)
        gc.collect()
        torch._dynamo.reset()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
