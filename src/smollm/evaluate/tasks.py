"""Tasks of EleutherAI's lm-eval (arXiv:2405.14782), by name, where that package and the tasks' data are there.

Those that users define themselves, in lm-eval's YAML files, are in data/tasks/ of the workspace.
"""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from smollm.config.evaluate import EvaluateConfig
from smollm.device.hardware import Hardware
from smollm.errors import ConfigError, CorpusError

STDERR = "_stderr"
"""Ends the name of a metric's standard error."""

_WHERE = "params.yaml: evaluate.tasks"

_OWN = Path("data", "tasks")


def check(tasks: tuple[str, ...], workspace: Path) -> None:
    """Refuse tasks that cannot be run.

    Args:
        tasks: by name.
        workspace: has the user's own ones.

    Raises:
        ConfigError: there are some, and lm-eval or what it needs is not installed, or does not know one.
    """
    if not tasks:
        return
    missing = [name for name in ("lm_eval", "accelerate", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{_WHERE} must be empty without lm-eval ({', '.join(missing)} not found), got {', '.join(tasks)}; run "
            f"`{sys.executable} -m pip install 'lm-eval[hf]'`, or set it to []"
        )
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    known = set(TaskManager(include_path=workspace / _OWN).all_tasks)
    unknown = [name for name in tasks if name not in known]
    if unknown:
        own = TaskManager(include_path=workspace / _OWN, include_defaults=False).all_tasks
        raise ConfigError(
            f"{_WHERE} must name tasks of lm-eval (`lm-eval ls tasks` lists them) or of the files {_OWN}/*.yaml (these "
            f"define {', '.join(own) or 'none'}), got {unknown[0]!r}; correct the name, or the file, which lm-eval "
            "passes over if it is no task"
        )


def run(
    name: str, workspace: Path, model: Path, settings: EvaluateConfig, hardware: Hardware, seed: int
) -> dict[str, dict[str, float]]:
    """The metrics of a task and of its parts, if it is a group: with their standard errors, and the examples used.

    Args:
        name: of the task.
        workspace: has the user's own tasks.
        model: a Hugging Face folder.
        settings: how many examples.
        hardware: device and precision.
        seed: of the choice of examples in the prompt.

    Raises:
        CorpusError: the task's data is neither here nor to be had, or lm-eval cannot run the task.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    try:
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": str(hardware.dtype).removeprefix("torch.")},
            tasks=[name],
            task_manager=TaskManager(include_path=workspace / _OWN),
            limit=settings.task_examples,
            device=str(hardware.device),
            batch_size=8,
            bootstrap_iters=100,
            log_samples=False,
            random_seed=seed % 2**32,
            numpy_random_seed=seed % 2**32,
            torch_random_seed=seed % 2**32,
            fewshot_random_seed=seed % 2**32,
        )
    except OSError as error:  # the base of what the hub's client and datasets raise
        raise CorpusError(
            f"{_WHERE}: the data of {name} must be here or reachable, got {_reason(error)}; run it once with a "
            "network, or leave the task out"
        ) from None
    except Exception as error:  # of the tasks' own code: no common base
        raise CorpusError(f"{_WHERE}: lm-eval must be able to run {name}, got {_reason(error)}; leave it out") from None
    samples = results["n-samples"]
    return {
        task: _numbers(values) | ({"examples": samples[task]["effective"]} if task in samples else {})
        for task, values in sorted(results["results"].items())
    }


def _reason(error: Exception) -> str:
    return f"{' '.join(f'{type(error).__name__}: {error}'.split()):.300}"


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The metrics of a task by name; lm-eval adds the name of a filter, which is usually none."""
    numbers = {}
    for key, value in sorted(values.items()):
        metric, _, kind = key.partition(",")
        if isinstance(value, float):
            name = metric.removesuffix(STDERR) + ("" if kind in ("", "none") else f"_{kind}")
            numbers[name + (STDERR if metric.endswith(STDERR) else "")] = value
    return numbers
