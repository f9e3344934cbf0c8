"""Compare kernels that the pipeline might use with what it does today, in one launch: `python3 benchmarks/kernels.py`.

    PYTHONPATH=src python3 benchmarks/kernels.py [--only documents,muon] [--rounds 5] [--seconds 0.3]

    documents   attention of one layer with `mask_documents`, for 32x2048 tokens in documents of log-normal lengths,
                800 tokens on average; "causal (bound)" has no documents, "own, causal" one document a sequence
    muon        Muon's update of all hidden matrices of SmolLM-135M, and the orthogonalization of each shape

Each variant is a process of its own. All compile at the same time. Then each in turn chooses the fastest of a few
block sizes and compares its results with float32. Then they take turns, round after round, and replay each operation
from a CUDA graph. A number in the table is the median of the rounds' medians; "of today's" is the median of the rounds'
ratios for the last operation. A variant that fails or exceeds its time limit gets one line, its traceback goes to
standard error, and the others go on. `candidates/` has the variants.

Without a GPU the sizes are tiny, Triton, if installed, interprets the kernels, and times mean nothing.
"""

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from candidates import attention, muon
from candidates.variant import ON_GPU, Variant

SUBJECTS: dict[str, dict[str, Callable[[], Variant]]] = {
    "documents": {name: partial(attention.attention, name) for name in attention.NAMES},
    "muon": {name: partial(muon.muon, name) for name in muon.NAMES},
}
"""The first variant of each is what the pipeline does today."""
ANSWER = "answer: "
"""What a line begins with that a worker writes for the process that asked."""
LIMITS = {"prepare": 180, "choose": 120, "time": 60}
"""Seconds that a worker may take for each question."""
GRAPHED = "captured"

Answer = dict[str, Any]


def capture(operation: Callable[[], object]) -> Callable[[], object]:
    """Replay of the operation as a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            operation()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = operation()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def milliseconds(operation: Callable[[], object], seconds: float) -> float:
    """Median over as many turns as fit into `seconds`; on a GPU three at least, of ten runs each."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < (3 if ON_GPU else 1) or time.perf_counter() - began < seconds:
        if ON_GPU:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            marks[0].record()
            for _ in range(10):  # the GPU waits for the host before the first
                operation()
            marks[1].record()
            marks[1].synchronize()
            times.append(marks[0].elapsed_time(marks[1]) / 10)
        else:
            start = time.perf_counter()
            operation()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


class Served:
    """A variant in its own process."""

    def __init__(self, build: Callable[[], Variant]) -> None:
        self.build = build

    def prepare(self) -> Answer:
        """Run every operation with every choice of settings once, so that all is compiled."""
        self.variant = self.build()
        torch.set_float32_matmul_precision("highest")
        notes = []
        for choice in self.variant.choices:
            before = dict(choice.settings)
            for values in list(choice.values):
                try:
                    choice.settings |= values
                    self.variant.operations[choice.operation]()
                    synchronize()
                except Exception as error:  # too much shared memory, for instance
                    choice.values.remove(values)
                    notes.append(f"not {values}: {first_line(error)}")
            choice.settings |= choice.values[0] if choice.values else before
        for operation in self.variant.operations.values():
            operation()
        synchronize()
        return {"notes": notes}

    def choose(self, seconds: float) -> Answer:
        """Take the fastest settings; then the errors, the memory, and the graphs to replay."""
        notes = []
        for choice in self.variant.choices:
            if len(choice.values) < 2:
                continue
            times = []
            for values in choice.values:
                choice.settings |= values
                times.append(milliseconds(self.variant.operations[choice.operation], seconds))
            best = times.index(min(times))
            choice.settings |= choice.values[best]
            listed = ", ".join(f"{each:.3f}" for each in times)
            notes.append(f"{choice.operation}: {choice.values[best]}, of {listed} ms")
        answer: Answer = {"errors": self.variant.errors(), GRAPHED: ON_GPU}
        if ON_GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            list(self.variant.operations.values())[-1]()
            synchronize()
            answer["memory"] = torch.cuda.max_memory_allocated() / 2**30
        self.timed = dict(self.variant.operations)
        for name, operation in reversed(self.variant.operations.items()):  # the most important first
            try:
                self.timed[name] = capture(operation) if ON_GPU else operation
            except Exception as error:
                answer[GRAPHED] = False
                notes.append(f"{name} not captured: {first_line(error)}")
                with suppress(RuntimeError):  # of the same error
                    synchronize()
        return answer | {"notes": notes}

    def time(self, seconds: float) -> Answer:
        return {"times": {name: milliseconds(operation, seconds) for name, operation in self.timed.items()}}


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


def serve(subject: str, name: str) -> None:
    """Answer the questions that standard input holds, one a line."""
    served = Served(SUBJECTS[subject][name])
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = getattr(served, question.pop("do"))(**question)
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": first_line(error)}
        print(ANSWER + json.dumps(answer), flush=True)


class Worker:
    """The process of a variant. After a failure it answers nothing more."""

    def __init__(self, subject: str, name: str) -> None:
        self.subject, self.name = subject, name
        self.failed = False
        environment = os.environ if ON_GPU else {**os.environ, "TRITON_INTERPRET": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", subject, name],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answers: queue.Queue[Answer | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if line.startswith(ANSWER):
                self._answers.put(json.loads(line.removeprefix(ANSWER)))
            else:
                print(line, end="", file=sys.stderr)
        self._answers.put(None)

    def ask(self, do: str, **question: object) -> None:
        if not self.failed and self._process.stdin:
            with suppress(BrokenPipeError):  # `answer` says so
                print(json.dumps({"do": do} | question), file=self._process.stdin, flush=True)

    def answer(self, do: str) -> Answer:
        """Its answer to the question asked; empty after a failure, which is printed once."""
        if self.failed:
            return {}
        try:
            answer = self._answers.get(timeout=LIMITS[do])
        except queue.Empty:
            answer = {"failed": f"no answer within {LIMITS[do]} s"}
        if answer is None:
            answer = {"failed": f"its process ended with {self._process.wait()}"}
        if "failed" in answer:
            self.failed = True
            print(f"{self.subject}, {self.name}: failed to {do}: {answer['failed']}", flush=True)
            self.close()
            return {}
        for note in answer.get("notes", ()):
            print(f"{self.subject}, {self.name}: {note}", flush=True)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def compare(subject: str, rounds: int, seconds: float) -> None:
    workers = [Worker(subject, name) for name in SUBJECTS[subject]]
    try:
        for worker in workers:
            worker.ask("prepare")
        for worker in workers:
            worker.answer("prepare")
        checked: list[Answer] = []
        for worker in workers:
            worker.ask("choose", seconds=seconds / 3)
            checked.append(worker.answer("choose"))
        times: list[list[dict[str, float]]] = [[] for _ in workers]
        for _ in range(rounds):
            for worker, turns in zip(workers, times, strict=True):
                worker.ask("time", seconds=seconds)
                turns.append(worker.answer("time").get("times", {}))
    finally:
        for worker in workers:
            worker.close()
    print_table(subject, [worker.name for worker in workers], checked, times)


def print_table(subject: str, names: list[str], checked: list[Answer], times: list[list[dict[str, float]]]) -> None:
    operations = next((list(turns[-1]) for turns in times if turns[-1]), [])
    errors = next((list(answer["errors"]) for answer in checked if answer), [])
    columns = [f"{name}, ms" for name in operations] + ["of today's", GRAPHED, "GiB"] + [f"error, {e}" for e in errors]
    print(f"\n| {subject} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, answer, turns in zip(names, checked, times, strict=True):
        if not turns[-1]:
            print(f"| {name} | failed" + " |" * len(columns))
            continue
        cells = [f"{statistics.median(turn[operation] for turn in turns):.3f}" for operation in operations]
        last = operations[-1]
        shares = [turn[last] / today[last] for turn, today in zip(turns, times[0], strict=True) if today]
        cells.append(f"{statistics.median(shares):.3f}" if shares else "")
        cells += ["yes" if answer[GRAPHED] else "no", f"{answer['memory']:.2f}" if "memory" in answer else ""]
        cells += [f"{answer['errors'][error]:.1e}" if error in answer["errors"] else "" for error in errors]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(flush=True)


def versions() -> str:
    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    found = [of(package) for package in ("torch", "triton", "numpy")]
    if ON_GPU:
        found += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]  # type: ignore[no-untyped-call]
    name = torch.cuda.get_device_name() if ON_GPU else "no GPU"
    return f"{name}, Python {sys.version.split()[0]}, {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SUBJECTS), help="of " + ", ".join(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=5 if ON_GPU else 1)
    parser.add_argument("--seconds", type=float, default=0.3 if ON_GPU else 0.0, help="of each operation in a round")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    began = time.perf_counter()
    print(versions(), flush=True)
    for subject in arguments.only.split(","):
        compare(subject, arguments.rounds, arguments.seconds)
        print(f"{time.perf_counter() - began:.0f} s so far\n", flush=True)


if __name__ == "__main__":
    main()
