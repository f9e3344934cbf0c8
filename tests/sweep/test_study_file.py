"""Study files: what they may say, and the line for each mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.structure import ROOT

from smollm.errors import ConfigError
from smollm.sweep.study_file import Space, read_study, text_of, with_values

RIGHT: dict[str, Any] = {
    "stage": "pretrain",
    "trials": 3,
    "sampler": "tpe",
    "seed": 1,
    "pruner": {"kind": "median", "first_trials": 1, "first_step": 0},
    "params": {"pretrain.optimizer.lr": {"log": [1e-3, 1e-2]}},
}


class _Dumper(yaml.SafeDumper):
    """Writes integers too long for Python's decimal digits in hexadecimal ones."""


_Dumper.add_representer(int, lambda dumper, value: dumper.represent_int(value if value < 2**64 else hex(value)))


def write(directory: Path, name: str = "rates", **changes: Any) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(yaml.dump({**RIGHT, **changes}, sort_keys=False, Dumper=_Dumper))
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read_study(path, ROOT / "params.yaml")
    return str(error.value).replace(str(path), "study").splitlines()


def test_a_study_has_a_space_for_each_setting(tmp_path: Path) -> None:
    spaces = {
        "pretrain.optimizer.lr": {"log": [1, 2]},
        "pretrain.schedule.warmup_steps": {"range": [0, 9]},
        "pretrain.ema_decay": {"choices": [None, 0.9]},
    }
    study = read_study(write(tmp_path, params=spaces), ROOT / "params.yaml")
    assert study.name == "rates"
    assert study.params == {
        "pretrain.optimizer.lr": Space(1.0, 2.0, is_log=True),
        "pretrain.schedule.warmup_steps": Space(0, 9, is_whole=True),
        "pretrain.ema_decay": Space(choices=(None, 0.9)),
    }
    assert list(map(str, study.params.values())) == ["log: [1.0, 2.0]", "range: [0, 9]", "choices: [null, 0.9]"]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_repository_are_right(path: Path) -> None:
    assert read_study(path, ROOT / "params.yaml").params


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        (
            "pretrain.optimizer.rl",
            {"log": [1, 2]},
            "is not a setting of params.yaml, got {'log': [1, 2]}; did you",
        ),
        ("pretrain.optimizer", {"log": [1, 2]}, "is not a setting of params.yaml"),
        ("pretrain.optimizer.lr", 3, "must be one of range, log, choices, with a list, got 3; write e.g. {log:"),
        ("pretrain.optimizer.lr", {"low": 1, "high": 2}, "must be one of range, log, choices, with a list"),
        ("pretrain.optimizer.lr", {"log": [0, 1]}, "must be two numbers above 0, the smaller first, got [0, 1]; write"),
        ("pretrain.optimizer.lr", {"range": [2, 1]}, "must be two numbers, the smaller first, got [2, 1]; write"),
        ("pretrain.optimizer.lr", {"range": [-1, 1]}, "must be above 0, got -1.0; use a number above 0"),
        ("pretrain.steps", {"range": [0.5, 9]}, "must be two whole numbers, the smaller first, got [0.5, 9]; write"),
        ("pretrain.export", {"range": [1, 2]}, "must be choices, as the setting is not a number, got [1, 2]; write {"),
        ("pretrain.export", {"choices": ["best", "lats"]}, "must be best, last, got 'lats'; did you mean last?"),
        (
            "pretrain.steps",
            {"choices": [1, 16**4000]},
            "must have numbers of at most 64 bits, got a number of",
        ),
        (
            "pretrain.optimizer.lr",
            {"log": [1, 16**4000]},
            "must have numbers of at most 64 bits, got a number of",
        ),
        ("pretrain.export", {"choices": ["best", "best"]}, "must list numbers, strings, true, false or null, each"),
        (
            "runtime.device",
            {"choices": ["cpu"]},
            "must be of a section that a study of pretrain varies (seed, ",
        ),
        ("finetune.optimizer.lr", {"log": [1, 2]}, "must be of a section that a study of pretrain varies"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, name: str, given: object, line: str) -> None:
    (found,) = problems(write(tmp_path, params={name: given}))
    assert found.startswith(f"study: params.{name} {line}")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    found = problems(write(tmp_path, "bad name", stage="tokenize", trials=0, params={}))
    assert found[0].startswith("study: the name must be of letters, digits, - and _, as experiments have it, got")
    assert found[1] == "study: stage must be pretrain, finetune, got 'tokenize'; use pretrain"
    assert "study: trials must be at least 1, got 0; use 1 or more" in found
    assert any(line.startswith("study: params must name at least one setting of params.yaml, got {}") for line in found)


def test_a_missing_key_and_a_missing_file_are_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("seed: 1\n", ""))
    assert problems(path) == ["study: seed must be set, got nothing; copy it from another study in sweeps/"]
    assert problems(tmp_path / "no.yaml")[0].startswith("STUDY must name a file, got")


def test_a_study_of_finetune_varies_both_stages(tmp_path: Path) -> None:
    params = {f"{stage}.optimizer.lr": {"log": [1, 2]} for stage in ("pretrain", "finetune")}
    assert len(read_study(write(tmp_path, stage="finetune", params=params), ROOT / "params.yaml").params) == 2


def test_values_are_set_by_dotted_name_and_the_others_stay() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert with_values(base, {"a.b": 7, "d": 8}) == {"a": {"b": 7, "c": 2}, "d": 8}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-05, "1e-05"), (3, "3"), (True, "true"), (None, "null"), ("muon", '"muon"'), ('a"b', '"a\\"b"')],
)
def test_values_are_written_as_yaml(value: bool | int | float | str | None, text: str) -> None:
    assert text_of(value) == text
    assert yaml.safe_load(text) in (value, text)
