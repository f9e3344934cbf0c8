"""What writing a checkpoint costs training: the same steps alone, and while one is written.

    PYTHONPATH=src python3 benchmarks/checkpoint.py --preset smollm-135m --directory /tmp/checkpoints

Random tokens; steps of the plain model, compiled where the device has it compiled. Prints the seconds that
the loop stands still for (the copy to host memory), those that the write takes beside it, the step's median time alone
and during a write, the device's peak memory before and after, and, to compare, a write waited for.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from training_step import with_kind

from smollm.config.file import Config, load
from smollm.device import hardware
from smollm.model.llama import Execution, LlamaForCausalLM
from smollm.training.checkpoint import Checkpoint, TrainerState
from smollm.training.checkpoint_store import CheckpointStore
from smollm.training.optim import Optimizer


class Steps:
    """A model in training on random tokens."""

    def __init__(self, config: Config, machine: hardware.Hardware, rows: int) -> None:
        self.machine, self.config = machine, config
        self.model = LlamaForCausalLM(config.model, Execution(compiled=machine.compile)).to(machine.device)
        self.optimizer = Optimizer(self.model, config.pretrain.optimizer, machine.dtype)
        self.shape = (rows, config.pretrain.sequence_length + 1)

    def take(self) -> float:
        """Take one step; its seconds."""
        ids = torch.randint(self.config.model.vocab_size, self.shape, device=self.machine.device)
        self.machine.synchronize()
        began = time.perf_counter()
        with self.machine.autocast():
            loss = self.model.loss(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.model.parameters(), self.config.pretrain.gradient_clip)
        for part in self.optimizer.parts:
            part.step()
        self.optimizer.zero_grad()
        self.machine.synchronize()
        return time.perf_counter() - began

    def checkpoint(self, step: int) -> Checkpoint:
        state = TrainerState(step, "pretrain", "0" * 16, None, 0)
        return Checkpoint(state, self.model.weights(), self.optimizer.state())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="smollm-135m")
    parser.add_argument("--directory", type=Path, default=Path("/tmp/smollm-checkpoints"))
    parser.add_argument("--rows", type=int, help="sequences of a step; the preset's where it is not given")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed alone")
    arguments = parser.parse_args()
    config = load(Path(__file__).resolve().parents[1] / "presets" / f"{arguments.preset}.yaml")
    config = with_kind(config, config.pretrain.optimizer.kind)
    machine = hardware.choose(config.runtime)
    shutil.rmtree(arguments.directory, ignore_errors=True)
    store = CheckpointStore(arguments.directory, keep=2, fingerprint="0" * 16)
    steps = Steps(config, machine, arguments.rows or config.pretrain.sequences_per_step)
    for _ in range(3):
        steps.take()
    alone = statistics.median(steps.take() for _ in range(arguments.steps))
    memory = machine.peak_memory_gib()
    print(f"{machine.name}, torch {torch.__version__}: {1000 * alone:,.1f} ms a step, peak {memory:.2f} GiB")
    for number in (1, 2, 3):
        began = time.perf_counter()
        store.save(steps.checkpoint(number))
        still = time.perf_counter() - began
        during = []
        while store.is_writing():
            during.append(steps.take())
        total = time.perf_counter() - began
        store.wait()
        slow = statistics.median(during) if during else float("nan")
        print(
            f"write {number}: still for {still:.3f} s, written after {total:.2f} s; {len(during)} steps meanwhile, "
            f"{1000 * slow:,.1f} ms each ({slow / alone - 1:+.1%}); peak {machine.peak_memory_gib():.2f} GiB"
        )
    began = time.perf_counter()
    store.save(steps.checkpoint(4))
    store.wait()
    print(f"waited for, a write takes {time.perf_counter() - began:.2f} s")
    shutil.rmtree(arguments.directory)


if __name__ == "__main__":
    main()
