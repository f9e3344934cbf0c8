"""The stage `evaluate`, from the finetuned model to its report."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from smollm.config.evaluate import EvaluateConfig
from smollm.config.runtime import RuntimeConfig
from smollm.config.tracking import TrackingConfig
from smollm.config.training import TrainingConfig
from smollm.device import hardware
from smollm.device.hardware import Hardware
from smollm.device.seeding import seed_everything
from smollm.evaluate import held_out, memory, report, samples, tasks
from smollm.evaluate.results import Results
from smollm.evaluate.text import TEXTS, HeldOutText
from smollm.model.export import read_model
from smollm.model.llama import Execution, LlamaForCausalLM
from smollm.stage.run import StageRun, run_stage
from smollm.state.files import write_json
from smollm.state.journal import Kind
from smollm.state.tokens import TRAIN, VALIDATION, read_manifest, token_bytes, token_directory
from smollm.state.workspace import Workspace
from smollm.tracking import announce, summary
from smollm.tracking.console import ProgressBar, say
from smollm.tracking.datasets import token_dataset
from smollm.tracking.observer import RunInputs

MODEL = "models/finetune"


@dataclass(frozen=True)
class EvaluateStage:
    """The stage, with all the settings that it reads."""

    workspace: Workspace
    seed: int
    evaluate: EvaluateConfig
    finetune: TrainingConfig
    """Says what the model's tokens attend to, and how long its sequences were."""
    runtime: RuntimeConfig
    tracking: TrackingConfig

    def run(self) -> None:
        """Measure the model and write the report; after a kill, go on with what was not measured.

        Raises:
            PipelineError: with a line for the user.
        """
        run_stage("evaluate", self.workspace, self.tracking, self._inputs, self._work, self._publish)

    def _work(self, run: StageRun) -> None:
        _Measurements(self, run).take()

    def _publish(self, run: StageRun) -> None:
        results = _Measurements(self, run).read()
        metrics = report.write(run.reports, self.workspace.directory, results, run.state.journal.records())
        run.artifacts |= {name: run.reports / name for name in report.FILES}
        say(summary.evaluation(metrics))

    def _inputs(self, run: StageRun) -> RunInputs:
        directory = self.workspace.directory
        sections = {"seed": self.seed, "evaluate": self.evaluate, "runtime": self.runtime}
        datasets = [
            token_dataset(run.state, name, split, context)
            for name in TEXTS
            for split, context in ((VALIDATION, "validation"), (TRAIN, "training"))
        ]
        return RunInputs(sections, datasets, directory / "reports" / "finetune" / "run.json")


class _Measurements:
    """The measurements of one run, each of which is kept in a file of its own once it is taken."""

    def __init__(self, stage: EvaluateStage, run: StageRun) -> None:
        self.stage, self.run, self.settings = stage, run, stage.evaluate
        self.directory = stage.workspace.directory
        self.length = self.settings.sequence_length or stage.finetune.sequence_length

    def take(self) -> None:
        """Take those that no start before this one has taken."""
        tasks.check(self.settings.tasks, self.directory)
        for text in self._texts:  # refuses what does not fit before anything is computed
            text.windows(self.length, self.settings.held_out_tokens)
            samples.places(text, self.settings)
        seed_everything(self.stage.seed)
        for text in self._texts:
            self._part(f"held_out_{text.name}", partial(self._held_out, text))
        for text in self._texts:
            self._part(f"samples_{text.name}", partial(self._samples, text))
        for name in TEXTS:
            self._part(f"overlaps_{name}", partial(self._overlaps, name))
        for number, name in enumerate(self.settings.tasks):
            self._part(f"task_{number}", partial(self._task, name), f"task {name}")
        results = self.read()
        self.run.state.journal.append(Kind.RESULT, 0, **report.mlflow_metrics(results))

    def read(self) -> Results:
        """All of them."""
        texts = self._continuations()
        rows = memory.merged(texts, {name: self._read(f"overlaps_{name}") for name in TEXTS})
        return Results(
            model=str(self.run.state.inputs[MODEL]),
            parameters=self._read("held_out_pretrain")["parameters"],
            length=self.length,
            settings=self.settings,
            held_out={name: self._read(f"held_out_{name}") for name in TEXTS},
            samples={name: self._read(f"samples_{name}") for name in TEXTS},
            overlaps=rows,
            tasks={
                task: values
                for number in range(len(self.settings.tasks))
                for task, values in self._read(f"task_{number}").items()
            },
        )

    def _part(self, name: str, measure: Callable[[], Any], shown: str | None = None) -> None:
        """Take one measurement and keep it as file `name`."""
        self.run.check_stop()
        path, shown = self._path(name), shown or name.replace("_", " ")
        if path.exists():
            self.run.log(announce.measured_before(shown))
            return
        began = time.monotonic()
        write_json(path, measure())
        self.run.log(announce.measured(shown, time.monotonic() - began))

    def _read(self, name: str) -> Any:
        return json.loads(self._path(name).read_text(encoding="utf-8"))

    def _path(self, name: str) -> Path:
        return self.run.state.directory / "data" / f"{name}.json"

    def _held_out(self, text: HeldOutText) -> dict[str, Any]:
        model, tokenizer, machine = self._loaded
        progress: ProgressBar | None = None

        def on_progress(done: int, total: int) -> None:
            nonlocal progress
            progress = progress or ProgressBar(f"evaluate {text.name}", total, unit="window")
            progress.update(done)

        sizes, most = token_bytes(tokenizer), self.settings.held_out_tokens
        result = held_out.measure(model, text, sizes, self.length, most, machine, on_progress)
        if progress is not None:
            progress.close()
        return {**result, "parameters": sum(weight.numel() for weight in model.weights().values())}

    def _samples(self, text: HeldOutText) -> list[dict[str, Any]]:
        model, tokenizer, machine = self._loaded
        return samples.draw(model, tokenizer, text, self.settings, machine, self.stage.seed)

    def _overlaps(self, name: str) -> list[dict[str, Any]]:
        _, tokenizer, _ = self._loaded
        tokens = read_manifest(token_directory(self.directory, name))[TRAIN]["tokens"]
        with closing(ProgressBar(f"evaluate {name}'s training text", 2 * tokens, unit="token")) as progress:
            return memory.compare(self.directory, name, self._continuations(), tokenizer, progress.update)

    def _task(self, name: str) -> dict[str, dict[str, float]]:
        return tasks.run(name, self.directory, self.directory / MODEL, self.settings, self._loaded[2], self.stage.seed)

    def _continuations(self) -> list[str]:
        """All samples, each followed by the document's own continuation."""
        drawn = [sample for name in TEXTS for sample in self._read(f"samples_{name}")]
        return [sample[kind] for sample in drawn for kind in (memory.SAMPLE, memory.REFERENCE)]

    @cached_property
    def _texts(self) -> list[HeldOutText]:
        return [HeldOutText.open(self.directory, name) for name in TEXTS]

    @cached_property
    def _loaded(self) -> tuple[LlamaForCausalLM, Tokenizer, Hardware]:
        machine = hardware.choose(self.stage.runtime, steps=1)  # a few seconds of work: not worth compiling on a CPU
        self.run.log(announce.hardware(machine.name, machine.device.type, machine.precision.value, False))
        model, tokenizer = read_model(self.directory / MODEL)
        if self.stage.finetune.mask_documents:
            end = int(read_manifest(token_directory(self.directory, "finetune"))["end_of_text_id"])
            model.execute_as(Execution(document_end=end))
        return model.to(machine.device).eval(), tokenizer, machine
