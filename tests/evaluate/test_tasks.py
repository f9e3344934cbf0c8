"""Tasks of lm-eval: a stand-in of the package, and the package itself where it is installed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.clone import environment
from support.held_out import SETTINGS
from support.models import random_model
from support.servers import hub
from support.structure import ROOT
from tokenizers import Tokenizer

from smollm.config.model import ModelConfig
from smollm.device.hardware import Hardware
from smollm.errors import ConfigError, CorpusError
from smollm.evaluate import tasks
from smollm.evaluate.report import mlflow_metrics
from smollm.evaluate.results import Results
from smollm.evaluate.text import TEXTS
from smollm.model.export import write_model


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of this name that knows one task and answers as lm-eval 0.4.13 does; tests set `simple_evaluate`."""
    package, of_tasks = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")

    class TaskManager:
        def __init__(self, include_path: Path, include_defaults: bool = True) -> None:
            self.all_tasks = ["known"] * include_defaults + [path.stem for path in include_path.glob("*.yaml")]

    of_tasks.TaskManager = TaskManager  # type: ignore[attr-defined]
    for name, module in {"lm_eval": package, "lm_eval.tasks": of_tasks}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    return package


def test_without_lm_eval_they_are_refused_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tasks.check((), Path())
    with pytest.raises(
        ConfigError, match=r"evaluate.tasks must be empty without lm-eval \(lm_eval.*got hellaswag; run `.*pip install"
    ):
        tasks.check(("hellaswag",), Path())


@pytest.mark.usefixtures("lm_eval")
def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    tasks.check(("known",), tmp_path)
    with pytest.raises(
        ConfigError, match=r"evaluate.tasks must name .* data/tasks/\*.yaml \(these define none\), got 'knwon'"
    ):
        tasks.check(("known", "knwon"), tmp_path)
    (tmp_path / "data/tasks").mkdir(parents=True)
    (tmp_path / "data/tasks/mine.yaml").touch()
    tasks.check(("known", "mine"), tmp_path)
    with pytest.raises(ConfigError, match=r"\(these define mine\), got 'mein'"):
        tasks.check(("mein",), tmp_path)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ConnectionError("Couldn't reach\nthe hub"),
            "the data of known must be here or .*ConnectionError: Couldn't reach the",
        ),
        (ValueError("is marked as unsafe"), "must be able to run known, got ValueError: is marked as unsafe; leave"),
    ],
)
def test_what_keeps_a_task_from_running_is_one_line_on_that_task(
    error: Exception, line: str, lm_eval: ModuleType, cpu: Hardware, tmp_path: Path
) -> None:
    def fail(**arguments: Any) -> None:
        raise error

    lm_eval.simple_evaluate = fail  # type: ignore[attr-defined]
    with pytest.raises(CorpusError, match=line):
        tasks.run("known", tmp_path, tmp_path, SETTINGS, cpu, seed=1)


def test_metrics_have_their_errors_filters_and_the_number_of_examples(
    lm_eval: ModuleType, cpu: Hardware, tmp_path: Path
) -> None:
    values = {
        "alias": "known",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "match,strict": 1.0,
        "match_stderr,strict": "N/A",
    }
    results = {
        "results": {"known": values, "group": {"acc,none": 0.5}},
        "n-samples": {"known": {"original": 40, "effective": 16}},
    }
    lm_eval.simple_evaluate = lambda **arguments: results  # type: ignore[attr-defined]
    assert tasks.run("known", tmp_path, tmp_path, SETTINGS, cpu, seed=1) == {
        "group": {"acc": 0.5},
        "known": {"acc": 0.5, "acc_stderr": 0.1, "match_strict": 1.0, "examples": 16},
    }


def test_mlflow_gets_no_name_that_it_refuses() -> None:
    text = {"bits_per_byte": 1.0, "loss": 1.0, "tokens": 1, "bytes": 1}
    overlap = {"tokens": 1, "characters": 1}
    results = Results(
        model="digest",
        parameters=1,
        length=16,
        settings=SETTINGS,
        held_out=dict.fromkeys(TEXTS, text),
        samples={name: [{"is_code": False}] for name in TEXTS},
        overlaps=[overlap] * 2 * len(TEXTS),
        tasks={"mmlu_(general)": {"pass@1": 0.5}},
    )
    assert mlflow_metrics(results)["evaluate/mmlu__general__pass_1"] == 0.5


PROGRAM = """
import json, sys, torch
from dataclasses import replace
from pathlib import Path
from smollm.config.runtime import Precision
from smollm.device.hardware import Hardware
from smollm.evaluate import tasks
from support.held_out import SETTINGS
name = sys.argv[1]
tasks.check((name,), Path())
cpu = Hardware(torch.device("cpu"), Precision.FP32, compile=False, name="CPU")
print(json.dumps(tasks.run(name, Path(), Path("model"), replace(SETTINGS, task_examples=4), cpu, 1)[name]))
"""


@pytest.fixture
def measure(model_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Has the real lm-eval measure a model in a process of its own, whose working directory is `tmp_path`."""
    pytest.importorskip("lm_eval", reason="needs pip install 'lm-eval[hf]'")
    write_model(tmp_path / "model", model_config, random_model(model_config).weights(), tokenizer, 0)

    def run(task: str, **variables: str) -> dict[str, float]:
        paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests"))
        variables = environment() | variables | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": paths}
        command = [sys.executable, "-c", PROGRAM, task]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured

    return run


def test_lm_eval_measures_a_task_by_name(measure: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    data = tmp_path / "hub" / "datasets" / "allenai" / "ai2_arc"
    data.mkdir(parents=True)
    choices = {"text": ["2", "3", "4", "5"], "label": ["A", "B", "C", "D"]}
    rows = [{"id": str(i), "question": f"What is {i} + 1?", "choices": choices, "answerKey": "A"} for i in range(6)]
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n"
        + "".join(f"  - {{split: {split}, path: test.jsonl}}\n" for split in ("train", "validation", "test"))
        + "---\n"
    )
    with hub(tmp_path / "hub") as server:
        measured = measure("arc_easy", **server.environment)
    assert measured.keys() == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "examples"}
    assert measured["examples"] == 4 and 0 <= measured["acc"] <= 1


def test_lm_eval_measures_the_task_of_the_guide(measure: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    own = tmp_path / "data" / "tasks"
    own.mkdir(parents=True)
    for name in ("brackets.yaml", "brackets.jsonl"):
        (text,) = re.findall(rf"`data/tasks/{name}`:\n\n```\w+\n(.*?)```", guide, re.S)
        (own / name).write_text(text)
    measured = measure("brackets")
    assert measured.keys() == {"acc", "acc_stderr", "examples"}
    assert measured["examples"] == 2
