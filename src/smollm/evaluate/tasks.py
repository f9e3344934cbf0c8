"""Tasks of EleutherAI's lm-eval (arXiv:2405.14782), by name, where that package and the tasks' data are there."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from smollm.config.evaluate import EvaluateConfig
from smollm.device.hardware import Hardware
from smollm.errors import ConfigError, CorpusError

_WHERE = "params.yaml: evaluate.tasks"


def check(tasks: tuple[str, ...]) -> None:
    """Refuse tasks that cannot be run.

    Raises:
        ConfigError: there are some, and lm-eval or what it needs is not installed, or does not know one.
    """
    if not tasks:
        return
    missing = [name for name in ("lm_eval", "accelerate", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{_WHERE} must be empty where {', '.join(missing)} is not installed, got {', '.join(tasks)}; run "
            "`pip install 'lm-eval[hf]'`, or set it to []"
        )
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    known = set(TaskManager().all_tasks)
    unknown = [name for name in tasks if name not in known]
    if unknown:
        raise ConfigError(f"{_WHERE} must name tasks of lm-eval, got {unknown[0]!r}; `lm-eval ls tasks` lists them")


def run(model: Path, settings: EvaluateConfig, hardware: Hardware, seed: int) -> dict[str, dict[str, float]]:
    """The metrics of each task, and of each group's parts.

    Args:
        model: a Hugging Face folder.
        settings: which tasks, and how many examples of each.
        hardware: device and precision.
        seed: of the choice of examples in the prompt.

    Raises:
        CorpusError: a task's data is neither here nor to be had.
    """
    from lm_eval import simple_evaluate

    try:
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": str(hardware.dtype).removeprefix("torch.")},
            tasks=list(settings.tasks),
            limit=settings.task_examples,
            device=str(hardware.device),
            batch_size=8,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=seed % 2**32,
            numpy_random_seed=seed % 2**32,
            torch_random_seed=seed % 2**32,
            fewshot_random_seed=seed % 2**32,
        )
    except Exception as error:  # of the hub's client, datasets and the tasks' own code: no common base
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CorpusError(
            f"{_WHERE}: the data of {', '.join(settings.tasks)} must be in the hub's cache or reachable, got "
            f"{reason:.300}; run it once with a network, or leave the task out"
        ) from None
    measured: dict[str, dict[str, Any]] = results["results"] if results else {}
    return {task: _numbers(values) for task, values in sorted(measured.items())}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The metrics of a task by name; lm-eval adds the name of a filter, which is usually none."""
    numbers = {name: value for name, value in values.items() if isinstance(value, float) and "stderr" not in name}
    return {name.removesuffix(",none").replace(",", "_"): value for name, value in sorted(numbers.items())}
