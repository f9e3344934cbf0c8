"""What MLflow costs training, and how long a table of many runs takes.

    OMP_NUM_THREADS=1 PYTHONPATH=src:tests taskset -c 0 python3 benchmarks/tracking.py [--rounds 5] [--steps 200]

Trains the tiny preset on random tokens; each round once without MLflow, and once each with the repository's
SQLite, a server that is down and a server that answers after five seconds. On one core, the tracker's work is
time that training loses. Prints the median milliseconds a step (journal, samples, validation and checkpoints
included), the median difference to the same round without MLflow, and the processor time of the tracker's own
threads, which varies less.
Then stores many runs of 5000 steps as the tracker would, and times `python3 -m smollm.tracking.compare` on them.
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from support.servers import free_port, mlflow_server, slow_way

from smollm.config.file import Config, load
from smollm.corpus import tokenizer
from smollm.device import hardware
from smollm.device.group import Group
from smollm.model.llama import Execution, LlamaForCausalLM
from smollm.state.files import write_json
from smollm.state.journal import Journal, Kind
from smollm.tracking import provenance
from smollm.tracking.console import ProgressBar
from smollm.tracking.delivery import Delivery
from smollm.tracking.mlflow_store import MlflowStore, sqlite_uri
from smollm.tracking.run_record import RunDescription, RunEnd
from smollm.tracking.tracker import Tracker
from smollm.tracking.upload import upload
from smollm.training.assembly import Assembly
from smollm.training.batches import Batches, validation_windows
from smollm.training.checkpoint_store import CheckpointStore
from smollm.training.data import TrainingData
from smollm.training.optim import Optimizer
from smollm.training.records import Records
from smollm.training.settings import Settings
from smollm.training.stop import StopSignal
from smollm.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
NONE = "no MLflow"


class Training:
    """A model in training on random tokens, as the pipeline trains one."""

    def __init__(self, config: Config, steps: int) -> None:
        torch.manual_seed(config.seed)
        self.config, self.machine = config, hardware.choose(config.runtime)
        self.training = dataclasses.replace(config.pretrain, steps=steps)
        texts = (str(number) + " " for number in range(100_000))
        small = dataclasses.replace(config.tokenizer, vocab_size=300)
        self.tokenizer = tokenizer.obtain(small, texts, ROOT)
        self.tokens = np.random.default_rng(0).integers(0, 256, 1_000_000).astype(np.uint16)
        model = LlamaForCausalLM(config.model, Execution(compiled=self.machine.compile)).to(self.machine.device)
        optimizer = Optimizer(model, self.training.optimizer, self.machine.dtype)
        rows = self.training.sequences_per_step
        self.assembly = Assembly(model, optimizer, self.machine, Group.single(), rows)

    def run(self, directory: Path) -> float:
        """Train for all steps with a journal in `directory`; milliseconds a step."""
        config, training, length = self.config, self.training, self.training.sequence_length
        batches = Batches(self.tokens, training.sequences_per_step, length, 1, "pretrain")
        windows = validation_windows(self.tokens, length, config.evaluation.validation_tokens, "pretrain")
        settings = Settings("pretrain", 1, config.model, training, config.evaluation, config.runtime)
        with closing(CheckpointStore(directory / "checkpoints", 2, "0" * 16)) as store:
            records = Records(Journal(directory / "journal.jsonl"), store, lambda *_: None)
            trainer = Trainer(settings, TrainingData(self.tokenizer, 0, batches, windows), self.assembly, records)
            began = time.perf_counter()
            with StopSignal() as stop, closing(ProgressBar("benchmark", training.steps, 0)) as progress:
                trainer.run(stop, progress)
            return 1000 * (time.perf_counter() - began) / settings.steps


def description(config: Config, number: int, lr: float) -> RunDescription:
    params = provenance.flatten({"pretrain": config.pretrain, "model": config.model})
    started = time.time()
    return RunDescription(
        delivery_id=f"{number:016x}-{int(started * 1000)}",
        experiment="smollm",
        run_name=f"pretrain tiny lr={lr:g}",
        started=started,
        user="benchmark",
        params={**params, "pretrain.optimizer.lr": f"{lr:g}"},
        tags={"stage": "pretrain", "dvc.out.checkpoints/pretrain": f"{number:032x}.dir", "git.commit": "0" * 40},
    )


def tracker_seconds(tracker: Tracker) -> float:
    """Processor time so far of the threads that send and that measure the system."""
    monitor = getattr(tracker._system_metrics._monitor, "_process", None)
    own = {thread.native_id for thread in (tracker._thread, monitor) if thread is not None}
    return sum(one.user_time + one.system_time for one in psutil.Process().threads() if one.id in own)


@contextmanager
def tracked(directory: Path, uri: str | None, config: Config, spent: list[float]) -> Iterator[None]:
    """A tracker that sends the journal in `directory`, and has connected where it can; adds its seconds to `spent`."""
    directory.mkdir(parents=True)
    if uri is None:
        yield
        spent.append(0.0)
        return
    root = directory / "mlruns"
    store = MlflowStore(uri or sqlite_uri(root / "mlflow.db"), root)
    if not uri:
        store.client()  # makes the tables, once in a repository's life
    tracker = Tracker(directory, store, dataclasses.replace(config.tracking, finish_seconds=5.0), lambda _: None)
    tracker.start(description(config, 1, 0.1))
    if not uri:
        while tracker.delivery.run_id is None:
            time.sleep(0.1)
    began = tracker_seconds(tracker)
    yield
    spent.append(tracker_seconds(tracker) - began)
    tracker.end(RunEnd("FINISHED", time.time()), {})


def time_loop(config: Config, rounds: int, steps: int, directory: Path) -> None:
    training = Training(config, steps)
    (directory / "warm").mkdir(parents=True)
    training.run(directory / "warm")
    with mlflow_server(directory / "server") as server:
        server.start()
        with slow_way(server.port) as way:
            way.seconds = 5.0
            dead = f"http://127.0.0.1:{free_port()}"
            stores = {NONE: None, "SQLite": "", "a dead server": dead, "5 s an answer": way.uri}
            taken: dict[str, list[float]] = {name: [] for name in stores}
            spent: dict[str, list[float]] = {name: [] for name in stores}
            for number in range(rounds):
                for name, uri in stores.items():
                    place = directory / f"{number}-{name}"
                    with tracked(place, uri, config, spent[name]):
                        taken[name].append(training.run(place))
    print(f"{training.machine.name}, torch {torch.__version__}, {steps} steps in each of {rounds} rounds")
    for name, values in taken.items():
        more = [value - base for value, base in zip(values, taken[NONE], strict=True)]
        own = 1000 * statistics.median(spent[name]) / steps
        print(
            f"{name:14}  {statistics.median(values):8.2f} ms a step  {statistics.median(more):+7.2f} ms "
            f"({min(more):+.2f} to {max(more):+.2f})  tracker {own:.2f} ms a step",
            flush=True,
        )


def fill(store: MlflowStore, config: Config, directory: Path, runs: int) -> None:
    """Store `runs` runs of 5000 steps, each number of which is what the tracker would send."""
    client = store.client()
    for number in range(runs):
        place = directory / str(number)
        place.mkdir(parents=True)
        write_json(place / "description.json", dataclasses.asdict(description(config, number, 0.001 * (1 + number))))
        with closing(Journal(place / "journal.jsonl")) as journal:
            for step in range(config.pretrain.log_every_steps, 5001, config.pretrain.log_every_steps):
                loss = 10 / step
                journal.append(Kind.STEP, step, train_loss=loss, gradient_norm=loss, learning_rate=loss)
                speed = {"tokens_per_second": 1e6 + step, "step_ms": loss, "mfu": loss, "goodput": loss}
                journal.append(Kind.SPEED, step, **speed, peak_memory_gib=loss)
                if step % config.pretrain.validate_every_steps == 0:
                    journal.append(Kind.VALIDATION, step, loss=loss, bits_per_byte=loss, best_bits_per_byte=loss)
            journal.append(Kind.RESULT, 5000, **{"speed/median_tokens_per_second": 1e6 + number})
        delivery = Delivery(place, store)
        delivery.end(RunEnd("FINISHED", time.time()), {})
        upload(delivery, client)


def time_compare(config: Config, runs: int, directory: Path) -> None:
    clone = directory / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    store = MlflowStore(sqlite_uri(clone / "mlruns" / "mlflow.db"), clone / "mlruns")
    began = time.perf_counter()
    fill(store, config, directory / "runs", runs)
    print(f"{runs} runs of 5000 steps sent to SQLite in {time.perf_counter() - began:.0f} s")
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "smollm.tracking.compare", "--sort", "train_loss"],
            cwd=clone,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(clone / "src")},
            capture_output=True,
            text=True,
            check=True,
        )
        taken.append(time.perf_counter() - began)
    print(
        f"smollm.tracking.compare prints {len(done.stdout.splitlines()) - 1} runs in {statistics.median(taken):.1f} s "
        f"({min(taken):.1f} to {max(taken):.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=int, default=100)
    arguments = parser.parse_args()
    config = load(ROOT / "presets" / "tiny.yaml")
    with tempfile.TemporaryDirectory() as directory:
        if arguments.rounds:
            time_loop(config, arguments.rounds, arguments.steps, Path(directory) / "loop")
        if arguments.runs:
            time_compare(config, arguments.runs, Path(directory) / "compare")


if __name__ == "__main__":
    main()
