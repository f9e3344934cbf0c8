"""Everything that the stage has measured."""

from dataclasses import dataclass
from typing import Any

from smollm.config.evaluate import EvaluateConfig
from smollm.evaluate.memory import statistics
from smollm.evaluate.syntax import is_accepted
from smollm.evaluate.text import TEXTS


@dataclass(frozen=True)
class Results:
    model: str
    """DVC's digest of it."""
    parameters: int
    length: int
    """Tokens of a window of held-out text."""
    settings: EvaluateConfig
    held_out: dict[str, dict[str, Any]]
    """By text, see `held_out.measure`."""
    samples: dict[str, list[dict[str, Any]]]
    """By text, see `samples.Sample`."""
    overlaps: list[dict[str, Any]]
    """Of each sample, and of its document's own continuation, in turn; see `memory.merged`."""
    tasks: dict[str, dict[str, float]]

    def overlaps_of(self, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The overlaps of the samples that continue the text `name`, and of its documents."""
        before = sum(len(self.samples[text]) for text in TEXTS[: TEXTS.index(name)])
        mine = self.overlaps[2 * before : 2 * (before + len(self.samples[name]))]
        return mine[::2], mine[1::2]

    def metrics(self) -> dict[str, Any]:
        """The numbers that metrics.json has."""
        metrics: dict[str, Any] = {"model": self.model, "parameters": self.parameters}
        for name in TEXTS:
            whole = {key: self.held_out[name][key] for key in ("bits_per_byte", "loss", "tokens", "bytes")}
            of_samples, of_documents = self.overlaps_of(name)
            metrics[name] = {
                **whole,
                "samples": len(self.samples[name]),
                "overlap": statistics(of_samples),
                "held_out_overlap": statistics(of_documents),
            }
        code = [sample for name in TEXTS for sample in self.samples[name] if sample["is_code"]]
        if code:
            metrics["code"] = {
                "samples": len(code),
                "accepted": _share([sample["prompt"] + sample["sample"] for sample in code]),
                "held_out_accepted": _share([sample["prompt"] + sample["reference"] for sample in code]),
            }
        return metrics | ({"tasks": self.tasks} if self.tasks else {})


def _share(texts: list[str]) -> float:
    return sum(map(is_accepted, texts)) / len(texts)
