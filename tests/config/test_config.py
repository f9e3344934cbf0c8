"""params.yaml and the presets: what loads, and the one line that each mistake gets."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.presets import PRESETS, SMOLLM_135M, setting_paths
from support.structure import ROOT

from smollm.config.file import load, read_values
from smollm.errors import ConfigError
from smollm.model.throughput import parameter_count
from smollm.operate.presets import copy as copy_preset


def sections(values: object, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(values, dict):
        return []
    return [where, *(inner for key, value in values.items() for inner in sections(value, (*where, key)))]


SETTINGS = setting_paths(read_values(SMOLLM_135M))
SECTIONS = sections(read_values(SMOLLM_135M))


def problems(tmp_path: Path, change: dict[str, Any], remove: tuple[str, ...] = ()) -> list[str]:
    """The lines that loading the full preset gives after `change` (dotted key to value)."""
    values = copy.deepcopy(read_values(SMOLLM_135M))
    for key, value in change.items():
        *path, last = key.split(".")
        section = values
        for name in path:
            section = section[name]
        section[last] = value
    if remove:
        section = values
        for name in remove[:-1]:
            section = section[name]
        del section[remove[-1]]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        load(file)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_names_itself(preset: Path) -> None:
    assert load(preset).preset == preset.stem


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_sets_the_same_keys(preset: Path) -> None:
    assert setting_paths(read_values(preset)) == SETTINGS


PUBLISHED = {
    "smollm-135m": 134_515_008,
    "smollm-360m": 361_821_120,
    "smollm-1.7b": 1_711_376_384,
    "shakespeare": 134_515_008,
    "own-text": None,  # nobody's but ours
    "own-text-cpu": None,
    "tiny": None,
}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_the_parameters_of_the_published_model(preset: Path) -> None:
    published = PUBLISHED[preset.stem]
    assert published is None or parameter_count(load(preset).model) == published


@pytest.mark.parametrize("setting", SETTINGS, ids=".".join)
def test_a_wrong_type_is_refused_in_one_line(setting: tuple[str, ...], tmp_path: Path) -> None:
    key = ".".join(setting)
    lines = problems(tmp_path, {key: {"a": "section"}})
    assert len(lines) == 1
    assert lines[0].startswith(f"params.yaml: {key} must be ")
    assert "got {'a': 'section'}; " in lines[0]


@pytest.mark.parametrize("setting", SETTINGS, ids=".".join)
def test_a_missing_setting_is_refused_in_one_line(setting: tuple[str, ...], tmp_path: Path) -> None:
    lines = problems(tmp_path, {}, remove=setting)
    assert lines == [f"params.yaml: {'.'.join(setting)} must be set, got nothing; copy it from a file in presets/"]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: ".".join(section) or "top")
def test_an_unknown_key_is_refused_in_one_line(section: tuple[str, ...], tmp_path: Path) -> None:
    key = ".".join((*section, "qqq"))
    lines = problems(tmp_path, {key: 1})
    assert len(lines) == 1
    assert lines[0].startswith(f"params.yaml: {key} is not a setting, got 1; remove it (")


def test_a_misspelt_key_is_told_its_name(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, {"pretrain.optimizer.weight_decai": 0.1})
    assert line.endswith("got 0.1; did you mean weight_decay?")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("seed", 1.5, "must be a whole number"),
        ("seed", True, "must be a whole number"),
        ("corpus.packages", [], "must not be empty"),
        ("corpus.packages", [1], "must be a string"),
        ("corpus.packages", [""], "must hold no empty name"),
        ("corpus.pretrain.files", [3], "must be a string"),
        ("corpus.pretrain.files", [None], "must be a string"),
        ("evaluation.prompts", [3], "must be a string"),
        ("seed", 2**63, "must fit into 64 bits"),
        ("seed", -1, "must be at least 0"),
        ("pretrain.steps", 10**400, "must fit into 64 bits"),
        ("pretrain.gradient_clip", 10**400, "must fit into 64 bits"),
        ("corpus.max_megabytes", 0, "must be above 0"),
        ("corpus.validation_fraction", 2, "must lie between 0 and 0.5"),
        ("corpus.validation_fraction", 0, "must be above 0"),
        ("corpus.pretrain.source", "pyhton", "must be python, python-docs, files, hub"),
        ("corpus.pretrain.source", "files", "must name files when source is files"),
        ("corpus.pretrain.source", "hub", "must be set when source is hub"),
        ("corpus.pretrain.files", ["/etc/*.txt"], "must name files below data/raw/"),
        ("corpus.pretrain.files", ["data/raw/../x"], "must name files below data/raw/"),
        ("corpus.pretrain.files", ["data/raw/**.txt"], "must have ** alone between slashes"),
        ("corpus.pretrain.files", ["data/raw/*", "data/raw/a**/*.txt"], "must have ** alone between slashes"),
        ("corpus.max_null_fraction", 1.5, "must lie between 0 and 1"),
        ("corpus.pretrain.template", "no key", "must hold keys of a message in braces, such as {content}"),
        ("corpus.pretrain.template", "{content", "must hold keys of a message in braces"),
        ("corpus.pretrain.template", "{}", "must hold keys of a message in braces"),
        ("corpus.pretrain.template", "{content!r}", "must hold keys of a message in braces"),
        ("corpus.pretrain.template", "{role.__class__}: {content}", "must hold keys of a message in braces"),
        ("tokenizer.vocab_size", 100, "must be at least 257"),
        ("tokenizer.vocab_size", 50_000, "must not exceed model.vocab_size (49152)"),
        ("tokenizer.end_of_text", "", "must not be empty"),
        ("tokenizer.source", "file", "must lie below data/raw/ when source is file"),
        ("tokenizer.source", "hub", "must be set when source is hub"),
        ("model.hidden_size", 577, "must be an even multiple of model.num_attention_heads (9)"),
        ("model.hidden_size", 0, "must be at least 1"),
        ("model.num_attention_heads", 0, "must be at least 1"),
        ("model.num_key_value_heads", 2, "must divide model.num_attention_heads (9)"),
        ("model.rope_theta", "many", "must be a finite number"),
        ("model.rms_norm_eps", -1, "must be above 0"),
        ("model.tie_word_embeddings", "yes", "must be true or false"),
        ("pretrain.steps", 0, "must be at least 1"),
        ("pretrain.steps", "5000", "must be a whole number"),
        ("pretrain.steps", None, "must be set, or pretrain.epochs, and the other null"),
        ("finetune.epochs", 2, "must be set, or finetune.epochs, and the other null"),
        ("pretrain.epochs", 0, "must be above 0"),
        ("pretrain.sequence_length", 4096, "must not exceed model.max_position_embeddings (2048)"),
        ("finetune.sequence_length", 4096, "must not exceed model.max_position_embeddings (2048)"),
        ("finetune.replay_fraction", 1, "must be below 1"),
        ("finetune.replay_fraction", -0.1, "must be at least 0"),
        ("pretrain.replay_fraction", 0.1, "must be 0: no stage comes before"),
        ("pretrain.optimizer.kind", "sgd", "must be muon, adamw"),
        ("finetune.optimizer.kind", "adamw", "must be pretrain's, whose moments it continues"),
        ("pretrain.optimizer.lr", 0, "must be above 0"),
        ("pretrain.optimizer.lr", float("inf"), "must be a finite number"),
        ("pretrain.optimizer.lr", float("nan"), "must be a finite number"),
        (
            "pretrain.optimizer.weight_decay",
            None,
            "must be set, or pretrain.optimizer.weight_decay_epochs, and the other",
        ),
        ("finetune.optimizer.weight_decay_epochs", 0.4, "must be set, or finetune.optimizer.weight_decay_epochs, and"),
        ("finetune.optimizer.weight_decay_epochs", 0, "must be above 0"),
        ("pretrain.optimizer.embedding_weight_decay", -0.1, "must be at least 0"),
        ("pretrain.optimizer.betas", [0.9], "must be a list of 2 numbers"),
        ("pretrain.optimizer.betas", [0.9, 1.0], "must be two numbers from 0 to below 1"),
        ("pretrain.optimizer.betas", [0.9, "x"], "must be a finite number"),
        ("pretrain.optimizer.momentum", 1, "must be below 1"),
        ("pretrain.schedule.warmup_steps", 4000, "must leave room for the decay: at most 3000 of the 5000 steps"),
        ("pretrain.schedule.decay_fraction", 2, "must lie between 0 and 1"),
        ("pretrain.dropout", 1, "must be below 1"),
        ("pretrain.label_smoothing", -0.1, "must be at least 0"),
        ("pretrain.ema_decay", 1, "must be below 1"),
        ("pretrain.gradient_clip", 0, "must be above 0"),
        ("pretrain.log_every_steps", 0, "must be at least 1"),
        ("evaluation.prompts", [], "must not be empty"),
        ("evaluation.prompts", [""], "must hold no empty text"),
        ("evaluation.sample_tokens", 2048, "must be below model.max_position_embeddings (2048)"),
        ("evaluation.temperature", 0, "must be above 0"),
        ("evaluate.sequence_length", 4096, "must not exceed model.max_position_embeddings (2048)"),
        ("evaluate.prompt_tokens", 1800, "must, together with evaluate.sample_tokens, not exceed"),
        ("evaluate.tasks", [""], "must hold no empty name"),
        ("runtime.device", "tpu", "must be auto or cuda, mps, cpu"),
        ("runtime.precision", "fp8", "must be auto or bf16, fp16, tf32, fp32"),
        ("runtime.compile", "maybe", "must be auto or true or false"),
        ("runtime.processes", 5, "must divide the 32 sequences of a pretrain step"),
        ("runtime.processes", "many", "must be auto or a whole number"),
        ("runtime.max_restarts", -1, "must be at least 0"),
        ("runtime.micro_batch_size", 20, "must divide the 32 sequences of a pretrain step"),
        ("runtime.micro_batch_size", "all", "must be auto or a whole number"),
        ("tracking.experiment", "", "must not be empty"),
        ("tracking.registered_model", "", "must not be empty"),
        ("tracking.registered_model", "team/smollm", "must hold no slash, colon or quote"),
        ("tracking.registered_model", "a:b", "must hold no slash, colon or quote"),
        ("tracking.registered_model", "team's", "must hold no slash, colon or quote"),
        ("pretrain.optimizer.lr", "${finetune.optimizer.lr}", "must be a plain value, since DVC compares"),
    ],
)
def test_an_impossible_value_is_refused_with_where_rule_value_and_fix(
    key: str, value: object, rule: str, tmp_path: Path
) -> None:
    lines = problems(tmp_path, {key: value})
    assert len({line.partition(", got ")[0] for line in lines}) == len(lines), "no setting has the same problem twice"
    line = next(line for line in lines if rule in line)
    assert line.startswith("params.yaml: ")
    where, _, rest = line.removeprefix("params.yaml: ").partition(" ")
    assert where.split("[")[0].startswith(key.rsplit(".", 1)[0])
    got, _, fix = rest.partition("; ")
    assert ", got " in got
    assert fix


@pytest.mark.parametrize(
    ("written", "where", "rule"),
    [
        ("seed: 0x{}", "seed", "must fit into 64 bits"),
        ("seed: -0x{}", "seed", "must fit into 64 bits"),
        ("seed: {{a: 0x{}}}", "seed", "must be a whole number"),
        ("seed: 1\nseeds: 0x{}", "seeds", "is not a setting"),
    ],
)
def test_a_hexadecimal_integer_too_long_to_print_is_refused_by_name(
    written: str, where: str, rule: str, tmp_path: Path
) -> None:
    text = SMOLLM_135M.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("seed:"))
    (tmp_path / "params.yaml").write_text(text.replace(line, written.format("f" * 5000)))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "params.yaml")
    (message,) = str(caught.value).splitlines()
    assert message.startswith(f"params.yaml: {where} {rule}, got a number of thousands of digits; ")


def test_the_micro_batch_message_names_the_neighbours(tmp_path: Path) -> None:
    lines = problems(tmp_path, {"runtime.micro_batch_size": 20})
    assert lines[0] == (
        "params.yaml: runtime.micro_batch_size must divide the 32 sequences of a pretrain step, got 20; use 16 or 32"
    )


def test_a_micro_batch_divides_what_each_process_has_of_a_step(tmp_path: Path) -> None:
    lines = problems(tmp_path, {"runtime.processes": 4, "runtime.micro_batch_size": 16})
    assert lines[0] == (
        "params.yaml: runtime.micro_batch_size must divide the 8 sequences that each process has of a pretrain step, "
        "got 16; use 8"
    )


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    lines = problems(tmp_path, {"pretrain.steps": 0, "model.nonsense": 1, "seed": "x"}, remove=("finetune", "steps"))
    assert len(lines) == 4


def test_a_mistake_in_one_section_does_not_hide_another_sections(tmp_path: Path) -> None:
    lines = problems(tmp_path, {"pretrain.steps": 0, "model.num_key_value_heads": 7, "finetune.sequence_length": 9999})
    assert [line.split(" ")[1] for line in lines] == [
        "pretrain.steps",
        "model.num_key_value_heads",
        "finetune.sequence_length",
    ]


def test_a_tokenizer_outside_what_dvc_watches_is_refused(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, {"tokenizer.source": "file", "tokenizer.file": "data/raw/../x.json"})
    assert line.startswith("params.yaml: tokenizer.file must lie below data/raw/")


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    text = SMOLLM_135M.read_text().replace("lr: 3.0e-3", "lr: 3e-3")
    (tmp_path / "params.yaml").write_text(text)
    assert load(tmp_path / "params.yaml").pretrain.optimizer.lr == 3e-3


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1\n- 2\n", "a: 1\na: 2\n", "\xff: \udcff", f"a: {'9' * 5000}\n"],
    ids=["yaml", "list", "twice", "bytes", "digits"],
)
def test_a_file_that_is_no_params_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(text.encode("latin-1", "replace") if "\xff" in text else text.encode())
    with pytest.raises(ConfigError, match=r"params\.yaml: "):
        load(tmp_path / "params.yaml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must exist"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_copied_into_params_whatever_was_there(preset: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("# What this file is.\n# More of it.\n\nseed: 1\nunknown: 2\n")
    copy_preset(preset, params)
    assert load(params) == load(preset)
    assert params.read_text().startswith("# What this file is.\n# More of it.\n\npreset: ")
    assert "unknown" not in params.read_text()
    copy_preset(ROOT / "presets" / "tiny.yaml", params)
    copy_preset(preset, params)
    assert load(params) == load(preset)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    known = ", ".join(sorted(preset.stem for preset in PRESETS))
    with pytest.raises(ConfigError, match=f"got 'huge'; use one of {known}"):
        copy_preset(ROOT / "presets" / "huge.yaml", ROOT / "params.yaml")
