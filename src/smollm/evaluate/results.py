"""Everything that the stage has measured."""

from dataclasses import dataclass
from typing import Any

from smollm.config.evaluate import EvaluateConfig
from smollm.evaluate.memory import REFERENCE, SAMPLE, statistics
from smollm.evaluate.syntax import has_code, is_accepted
from smollm.evaluate.text import TEXTS

_KINDS = (SAMPLE, REFERENCE)


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
        written, there = (_with_code([sample["prompt"] + sample[kind] for sample in code]) for kind in _KINDS)
        if written and there:
            metrics["code"] = {
                "samples": len(written),
                "accepted": _share(written),
                "held_out": len(there),
                "held_out_accepted": _share(there),
            }
        return metrics | ({"tasks": self.tasks} if self.tasks else {})


def _with_code(texts: list[str]) -> list[str]:
    """Those that get beyond their first comment or docstring, which says nothing about syntax."""
    return [text for text in texts if has_code(text)]


def _share(texts: list[str]) -> float:
    return sum(map(is_accepted, texts)) / len(texts)
