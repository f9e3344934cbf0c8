"""Turn plain YAML values into frozen dataclasses, collecting every problem on the way.

A field's type says what is accepted, and ``Annotated[..., Rule]`` what is allowed:

    steps: Annotated[int, at_least(1)]

Each problem is one line: where, the rule, the value, the fix.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable
from enum import Enum

T = typing.TypeVar("T")


class Auto(Enum):
    """The word ``auto``: the program chooses, and records what it chose."""

    AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition that a value must meet beyond its type."""

    holds: Callable[[typing.Any], bool]
    text: str
    fix: str


def at_least(low: float) -> Rule:
    return Rule(lambda value: value >= low, f"must be at least {low}", f"use {low} or more")


def between(low: float, high: float) -> Rule:
    return Rule(
        lambda value: low <= value <= high,
        f"must lie between {low} and {high}",
        f"use a number from {low} to {high}",
    )


def above(low: float) -> Rule:
    return Rule(lambda value: value > low, f"must be above {low}", f"use a number above {low}")


def below(high: float) -> Rule:
    return Rule(lambda value: value < high, f"must be below {high}", f"use a number below {high}")


NOT_EMPTY = Rule(lambda value: len(value) > 0, "must not be empty", "give at least one")


class Problems:
    """Collects the problems of a file, one line each."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: list[str] = []

    def add(self, where: str, rule: str, value: object, fix: str) -> None:
        self.lines.append(f"{self.file}: {where} {rule}, got {_show(value)}; {fix}")


def build(kind: type[T], values: object, where: str, problems: Problems) -> T | None:
    """Build the dataclass `kind` from a mapping; None if there are problems, which are added to `problems`."""
    before = len(problems.lines)
    fields = build_fields(kind, values, where, problems)
    return kind(**fields) if len(problems.lines) == before else None


def build_fields(kind: type[T], values: object, where: str, problems: Problems) -> dict[str, typing.Any]:
    """The values of the fields of the dataclass `kind`; None for a field with a problem."""
    if not isinstance(values, dict):
        problems.add(where, "must be a section with settings", values, "see presets/ for its keys")
        return {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            fix = f"did you mean {near[0]}?" if near else f"remove it ({where or 'the file'} has: {', '.join(hints)})"
            problems.add(_join(where, key), "is not a setting", values[key], fix)
    built: dict[str, typing.Any] = dict.fromkeys(hints)
    for name, hint in hints.items():
        path = _join(where, name)
        if name not in values:
            problems.add(path, "must be set", "nothing", "copy it from a file in presets/")
        else:
            built[name] = _convert(hint, values[name], path, problems)
    return built


def _convert(hint: object, value: object, where: str, problems: Problems) -> object:
    rules: tuple[Rule, ...] = ()
    if typing.get_origin(hint) is typing.Annotated:
        hint, *rest = typing.get_args(hint)
        rules = tuple(rest)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, where, problems)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    options = arguments if origin in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, int) and abs(value) >= 2**63:
        problems.add(where, "must fit into 64 bits", value, "write a number of fewer digits")
        return None
    before = len(problems.lines)
    for option in options:
        matches, converted = _match(option, value, where, problems)
        if matches:
            break
    else:
        expected = " or ".join(_name(option) for option in options)
        problems.add(where, f"must be {expected}", value, _type_fix(options, value))
        return None
    if converted is not None and not isinstance(converted, Auto) and len(problems.lines) == before:
        for rule in rules:
            if not rule.holds(converted):
                problems.add(where, rule.text, value, rule.fix)
                return None
    return converted


def _match(hint: object, value: object, where: str, problems: Problems) -> tuple[bool, object]:
    """Whether `value` is of the plain type `hint`, and the value as that type."""
    if hint is types.NoneType:
        return value is None, None
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False, None
        return math.isfinite(value), float(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint in (bool, str):
        return type(value) is hint, value
    if isinstance(hint, type) and issubclass(hint, Enum):
        member = next((m for m in hint if type(m.value) is type(value) and m.value == value), None)
        return member is not None, member
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            return False, None
        item, *rest = typing.get_args(hint)
        if rest[0] is not Ellipsis and len(value) != 1 + len(rest):
            return False, None
        items = (_convert(item, entry, f"{where}[{index}]", problems) for index, entry in enumerate(value))
        return True, tuple(items)
    raise AssertionError(f"{where}: no rule for the type {hint}")


def _name(hint: object) -> str:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) is tuple:
        _, *rest = typing.get_args(hint)
        return "a list" if rest[0] is Ellipsis else f"a list of {1 + len(rest)} numbers"
    names: dict[object, str] = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "a string",
        types.NoneType: "null",
    }
    return names[hint]


def _type_fix(options: tuple[object, ...], value: object) -> str:
    choices = [str(m.value) for o in options if isinstance(o, type) and issubclass(o, Enum) for m in o]
    near = difflib.get_close_matches(_show(value).strip("'"), choices, n=1)
    if near:
        return f"did you mean {near[0]}?"
    if isinstance(value, str) and any(option in (int, float) for option in options):
        return "write the number without quotes or units"
    if str in options:
        return "put it in quotes"
    if choices:
        return f"use {choices[0]}"
    if any(typing.get_origin(option) is tuple for option in options):
        return "write it as [a, b]"
    return f"write {' or '.join(_name(option) for option in options)}"


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _show(value: object) -> str:
    try:
        text = value if value == "nothing" else repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits, but YAML may hold a hexadecimal one
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
