"""Read a study file and report all its problems at once."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from smollm.config.fields import Problems, at_least, between, build, build_fields
from smollm.config.file import Config, load, read_values
from smollm.errors import ConfigError

Value = bool | int | float | str | None
"""Of a setting that a study varies."""

_KINDS = ("range", "log", "choices")
_SECTIONS = {
    "pretrain": ("seed", "tokenizer", "model", "pretrain"),
    "finetune": ("seed", "tokenizer", "model", "pretrain", "finetune"),
}
"""What a study of a stage may vary: not the text, by which bits per byte compare, nor how they are measured."""


class Stage(Enum):
    """The stage whose best bits per byte a study lowers."""

    PRETRAIN = "pretrain"
    FINETUNE = "finetune"


class SamplerKind(Enum):
    """How the values of a trial are chosen."""

    TPE = "tpe"
    """By a model of the trials so far (Bergstra et al. 2011)."""
    RANDOM = "random"


class PrunerKind(Enum):
    """Which trials are stopped early."""

    MEDIAN = "median"
    """Those whose best validation so far is worse than the median of the others' at the same step."""
    NONE = "none"


@dataclass(frozen=True)
class PrunerConfig:
    kind: PrunerKind
    first_trials: Annotated[int, at_least(1)]
    """Trials that must have ended before any is stopped."""
    first_step: Annotated[int, at_least(0)]
    """Step of the stage before which no trial is stopped."""


@dataclass(frozen=True)
class Plan:
    """A study file without `params`."""

    stage: Stage
    trials: Annotated[int, at_least(1)]
    sampler: SamplerKind
    seed: Annotated[int, between(0, 2**32 - 1)]
    pruner: PrunerConfig


@dataclass(frozen=True)
class Space:
    """The values that one setting may take: `choices` if there are any, else those from `low` to `high`."""

    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[Value, ...] = ()

    def __str__(self) -> str:
        """As in the study file."""
        kind = "choices" if self.choices else "log" if self.is_log else "range"
        return f"{kind}: [{', '.join(map(text_of, self.choices or (self.low, self.high)))}]"


@dataclass(frozen=True)
class Study:
    """A study file."""

    path: Path
    plan: Plan
    params: dict[str, Space]
    """By dotted name in params.yaml."""
    base: dict[str, Any]
    """The values of params.yaml, which every trial has where the study does not vary them."""

    @property
    def name(self) -> str:
        """The file's name without `.yaml`: that of its folder, and the beginning of its experiments' names."""
        return self.path.stem

    @property
    def stage(self) -> str:
        return self.plan.stage.value

    def described(self) -> dict[str, object]:
        """The study in plain values, by name."""
        plan = self.plan
        kinds = {"sampler": plan.sampler.value, "pruner": plan.pruner.kind.value}
        spaces = {f"space.{name}": space for name, space in self.params.items()}
        return {"study.stage": self.stage, "trials": plan.trials, "seed": plan.seed, **kinds, **spaces}


def text_of(value: Value) -> str:
    """A value as YAML and `dvc exp run -S` take it."""
    if isinstance(value, str):
        return '"' + value.replace('"', '\\"') + '"'
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def with_values(base: dict[str, Any], values: dict[str, Value]) -> dict[str, Any]:
    """A copy of the values of params.yaml with others at these dotted names."""
    changed = dict(base)
    for name, value in values.items():
        first, _, rest = name.partition(".")
        changed[first] = with_values(changed[first], {rest: value}) if rest else value
    return changed


def read_study(path: Path, params: Path) -> Study:
    """Read and check the study at `path`, which varies the settings in `params`.

    Raises:
        ConfigError: with a line for each problem, of the study or of params.yaml.
    """
    load(params)
    base = read_values(params)
    if not path.exists():
        known = ", ".join(sorted(str(file) for file in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"STUDY must name a file, got {str(path)!r}; there are: {known}")
    problems = Problems(str(path))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", path.stem):
        problems.add("the name", "must be of letters, digits, - and _, as experiments have it", path.stem, "rename it")
    values = read_values(path)
    named = values.pop("params", None)
    plan = build(Plan, values, "", problems)
    spaces: dict[str, Space] = {}
    if isinstance(named, dict) and named:
        known_settings = dict(_settings(Config))
        for name, given in named.items():
            space = _space(str(name), given, known_settings, base, problems)
            if plan is not None and str(name).partition(".")[0] not in _SECTIONS[plan.stage.value]:
                _refuse_section(str(name), plan.stage.value, problems)
            if space is not None:
                spaces[str(name)] = space
    else:
        example = "write e.g. pretrain.optimizer.lr: {log: [1.0e-3, 1.0e-2]}"
        problems.add("params", "must name at least one setting of params.yaml", named, example)
    if problems.lines or plan is None:
        raise ConfigError("\n".join(problems.lines).replace("a file in presets/", "another study in sweeps/"))
    return Study(path, plan, spaces, base)


def _settings(kind: type, where: str = "") -> Iterator[tuple[str, object]]:
    """Dotted name and type of every setting."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _settings(hint, f"{where}{name}.")
        else:
            yield f"{where}{name}", hint


def _refuse_section(name: str, stage: str, problems: Problems) -> None:
    allowed = ", ".join(_SECTIONS[stage])
    fix = "take it out: bits per byte compare only where text and measurement are the same, and runtime changes neither"
    problems.add(f"params.{name}", f"must be of a section that a study of {stage} varies ({allowed})", name, fix)


def _space(
    name: str, given: object, settings: dict[str, object], base: dict[str, Any], problems: Problems
) -> Space | None:
    """The space of the setting `name`; None, with a problem added, where it is not one."""
    where = f"params.{name}"
    if name not in settings:
        near = difflib.get_close_matches(name, settings, n=1)
        problems.add(
            where, "is not a setting of params.yaml", given, f"did you mean {near[0]}?" if near else "remove it"
        )
        return None
    kind, values = next(iter(given.items())) if isinstance(given, dict) and len(given) == 1 else (None, None)
    if kind not in _KINDS or not isinstance(values, list):
        fix = "write e.g. {log: [1.0e-3, 1.0e-2]}, {range: [0.0, 0.2]} or {choices: [16, 32]}"
        problems.add(where, f"must be one of {', '.join(_KINDS)}, with a list", given, fix)
        return None
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in values):
        problems.add(where, "must have numbers of at most 64 bits", values, "write numbers of fewer digits")
        return None
    if kind == "choices":
        space = _choices(where, values, problems)
    else:
        space = _interval(where, kind, values, settings[name], problems)
    if space is not None:
        _check_ends(name, space, base, problems)
    return space


def _choices(where: str, values: list[Any], problems: Problems) -> Space | None:
    if len({text_of(value) for value in values if not isinstance(value, list | dict)}) != len(values) or not values:
        problems.add(where, "must list numbers, strings, true, false or null, each once", values, "write each once")
        return None
    return Space(choices=tuple(values))


def _interval(where: str, kind: str, values: list[Any], hint: object, problems: Problems) -> Space | None:
    """The numbers between two ends: whole ones where the setting is."""
    types_of = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
    if not types_of & {int, float}:
        problems.add(where, "must be choices, as the setting is not a number", values, "write {choices: [...]}")
        return None
    is_whole = float not in types_of
    numbers = [value for value in values if isinstance(value, int if is_whole else int | float)]
    ordered = (
        len(values) == len(numbers) == 2 and not any(isinstance(v, bool) for v in values) and values[0] < values[1]
    )
    if not ordered or (kind == "log" and values[0] <= 0):
        what = "whole numbers" if is_whole else "numbers"
        positive = " above 0" if kind == "log" else ""
        problems.add(
            where, f"must be two {what}{positive}, the smaller first", values, f"write {{{kind}: [low, high]}}"
        )
        return None
    low, high = values if is_whole else map(float, values)
    return Space(low, high, kind == "log", is_whole)


def _check_ends(name: str, space: Space, base: dict[str, Any], problems: Problems) -> None:
    """Add a problem for each end of the space, or choice, that params.yaml would refuse by itself."""
    for value in space.choices or (space.low, space.high):
        alone = Problems("params")
        build_fields(Config, with_values(base, {name: value}), "", alone)
        problems.lines += [f"{problems.file}: params.{line.removeprefix('params: ')}" for line in alone.lines]
