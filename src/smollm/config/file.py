"""Read params.yaml and report all its problems at once.

DVC reruns a stage only for changes of the sections that its entry in dvc.yaml names. But every stage checks the whole
file when it starts, so that a mistake in `finetune` is found before days of `pretrain`.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from smollm.config.corpus import RAW_DATA, CorpusConfig, CorpusSource
from smollm.config.evaluate import EvaluateConfig
from smollm.config.evaluation import EvaluationConfig
from smollm.config.fields import Auto, Problems, at_least, build_fields
from smollm.config.model import ModelConfig
from smollm.config.runtime import RuntimeConfig
from smollm.config.tokenizer import TokenizerConfig, TokenizerSource
from smollm.config.tracking import TrackingConfig
from smollm.config.training import Start, TrainingConfig
from smollm.errors import ConfigError


@dataclass(frozen=True)
class Config:
    preset: str
    """Name of the preset that the values came from; only for display."""
    seed: Annotated[int, at_least(0)]
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    pretrain: TrainingConfig
    finetune: TrainingConfig
    evaluation: EvaluationConfig
    evaluate: EvaluateConfig
    runtime: RuntimeConfig
    tracking: TrackingConfig

    def training(self, stage: str) -> TrainingConfig:
        """The section of a training stage: `pretrain` or `finetune`."""
        return self.pretrain if stage == "pretrain" else self.finetune


def load(path: Path) -> Config:
    """Read, check and freeze the file at `path`.

    Raises:
        ConfigError: with a line for each problem, or one that says why the file cannot be read.
    """
    return config_of(read_values(path), path.name)


def config_of(values: dict[str, Any], file: str) -> Config:
    """Check and freeze the plain values of a params file.

    Raises:
        ConfigError: with a line for each problem, which begins with `file`.
    """
    problems = Problems(file)
    for key, text in _interpolations(values):
        problems.add(key, "must be a plain value, since DVC compares what is written", text, "write the value out")
    if not problems.lines:
        config = Config(**build_fields(Config, values, "", problems))
        for check, sections in _CHECKS:
            if all(getattr(config, section) is not None for section in sections):
                check(config, problems)
    if problems.lines:
        raise ConfigError("\n".join(problems.lines))
    return config


def read_values(path: Path) -> dict[str, Any]:
    """The file's plain values, unchecked; OmegaConf reads `3e-4` as a number, which PyYAML does not."""
    try:
        text = path.read_text(encoding="utf-8")
        loaded = _parse(text)
    except FileNotFoundError:
        raise ConfigError(f"{path.name}: must exist, got no file in {path.parent}; copy one from presets/") from None
    except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:  # ValueError: bytes, or digits of an int
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path.name}: must be a YAML file, got an error: {reason}; fix that line") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path.name}: must hold sections with settings, got a list; copy a file from presets/")
    return parse_values(text)


def parse_values(text: str) -> dict[str, Any]:
    """As `read_values`, from YAML text that is known to be a mapping."""
    values = OmegaConf.to_container(_parse(text), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@lru_cache(maxsize=8)
def _parse(text: str) -> DictConfig | ListConfig:
    """Cached: parsing takes a tenth of a second, and a stage reads the same files many times."""
    return OmegaConf.load(io.StringIO(text))


def _interpolations(values: object, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _interpolations(value, f"{where}.{key}" if where else str(key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from _interpolations(value, f"{where}[{index}]")
    elif isinstance(values, str) and "${" in values:
        yield where, values


def _check_both_optimizers(config: Config, problems: Problems) -> None:
    if config.finetune.optimizer.kind is not config.pretrain.optimizer.kind:
        problems.add(
            "finetune.optimizer.kind",
            "must be pretrain's, whose moments it continues",
            config.finetune.optimizer.kind.value,
            f"use {config.pretrain.optimizer.kind.value}",
        )


def _check_samples(config: Config, problems: Problems) -> None:
    longest = config.model.max_position_embeddings
    if config.evaluation.sample_tokens >= longest:
        problems.add(
            "evaluation.sample_tokens",
            f"must be below model.max_position_embeddings ({longest})",
            config.evaluation.sample_tokens,
            f"use {min(50, longest // 2)}",
        )


def _check_evaluate(config: Config, problems: Problems) -> None:
    evaluate, longest = config.evaluate, config.model.max_position_embeddings
    rule, fix = f"not exceed model.max_position_embeddings ({longest})", f"use {longest} or fewer"
    if evaluate.sequence_length is not None and evaluate.sequence_length > longest:
        problems.add("evaluate.sequence_length", f"must {rule}", evaluate.sequence_length, fix)
    if (length := evaluate.prompt_tokens + evaluate.sample_tokens) > longest:
        problems.add("evaluate.prompt_tokens", f"must, together with evaluate.sample_tokens, {rule}", length, fix)


def _check_model(config: Config, problems: Problems) -> None:
    model = config.model
    heads = model.num_attention_heads
    if model.hidden_size % heads or model.head_dim % 2:
        problems.add(
            "model.hidden_size",
            f"must be an even multiple of model.num_attention_heads ({heads})",
            model.hidden_size,
            f"use {max(1, round(model.hidden_size / heads / 2)) * 2 * heads}",
        )
    if heads % model.num_key_value_heads:
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        problems.add(
            "model.num_key_value_heads",
            f"must divide model.num_attention_heads ({heads})",
            model.num_key_value_heads,
            f"use one of {', '.join(map(str, divisors))}",
        )


def _check_training(name: str, config: Config, problems: Problems) -> None:
    training: TrainingConfig = getattr(config, name)
    context = config.model.max_position_embeddings
    if training.sequence_length > context:
        problems.add(
            f"{name}.sequence_length",
            f"must not exceed model.max_position_embeddings ({context})",
            training.sequence_length,
            f"use {context} or fewer",
        )
    if (training.steps is None) == (training.epochs is None):
        problems.add(
            f"{name}.steps",
            f"must be set, or {name}.epochs, and the other null",
            training.steps,
            f"set {name}.epochs to null" if training.steps else f"use e.g. 5000, or set {name}.epochs to e.g. 10",
        )
    elif training.steps is not None:
        check_warmup(name, training, problems)
    optimizer = training.optimizer
    if (optimizer.weight_decay is None) == (optimizer.weight_decay_epochs is None):
        problems.add(
            f"{name}.optimizer.weight_decay",
            f"must be set, or {name}.optimizer.weight_decay_epochs, and the other null",
            optimizer.weight_decay,
            "use e.g. 0.1, or set weight_decay_epochs to e.g. 0.4"
            if optimizer.weight_decay is None
            else "set weight_decay_epochs to null",
        )


def check_warmup(stage: str, training: TrainingConfig, problems: Problems) -> None:
    """Add a problem where the warm-up of a stage, whose `steps` are set, runs into its decay."""
    assert training.steps is not None
    most = training.max_warmup_steps(training.steps)
    if training.schedule.warmup_steps > most:
        problems.add(
            f"{stage}.schedule.warmup_steps",
            f"must leave room for the decay: at most {most} of the {training.steps} steps",
            training.schedule.warmup_steps,
            f"use {most} or fewer",
        )


def _check_start(config: Config, problems: Problems) -> None:
    if config.pretrain.start is not Start.INITIAL:
        problems.add(
            "pretrain.start", "must be initial: no stage comes before", config.pretrain.start.value, "use initial"
        )
    if config.pretrain.replay_fraction:
        problems.add(
            "pretrain.replay_fraction", "must be 0: no stage comes before", config.pretrain.replay_fraction, "use 0.0"
        )
    if config.finetune.start is Start.INITIAL:
        problems.add("finetune.start", "must be one of pretrain's states: best or last", "initial", "use best")


def _check_division(name: str, config: Config, problems: Problems) -> None:
    """Check that the processes divide a step's sequences evenly, and the micro-batch size each process's share."""
    sequences: int = getattr(config, name).sequences_per_step
    processes, micro = config.runtime.processes, config.runtime.micro_batch_size
    share = sequences
    if not isinstance(processes, Auto):
        _check_divisor("runtime.processes", processes, sequences, f"{sequences} sequences of a {name} step", problems)
        share = sequences // processes if sequences % processes == 0 else sequences
    if not isinstance(micro, Auto):
        what = f"{share} sequences " + ("" if share == sequences else "that each process has ") + f"of a {name} step"
        _check_divisor("runtime.micro_batch_size", micro, share, what, problems)


def _check_divisor(key: str, value: int, total: int, what: str, problems: Problems) -> None:
    if total % value:
        problems.add(key, f"must divide the {what}", value, f"use {near_divisors(total, value)}")


def near_divisors(total: int, value: int) -> str:
    """The largest divisor of `total` below `value` and the smallest above it, for a message: ``16 or 32``."""
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    below, above = [n for n in divisors if n < value], [n for n in divisors if n > value]
    return " or ".join(map(str, below[-1:] + above[:1]))


def _check_source(name: str, config: Config, problems: Problems) -> None:
    source: Any = getattr(config.corpus, name)
    where = f"corpus.{name}"
    if source.source is CorpusSource.FILES and not source.files:
        problems.add(f"{where}.files", "must name files when source is files", [], f'use e.g. ["{RAW_DATA}*.txt"]')
    if source.source is CorpusSource.HUB:
        for key in ("dataset", "revision"):
            if getattr(source.hub, key) is None:
                problems.add(
                    f"{where}.hub.{key}", "must be set when source is hub", None, "copy it from the hub's page"
                )


def _check_tokenizer(config: Config, problems: Problems) -> None:
    tokenizer = config.tokenizer
    if tokenizer.source is TokenizerSource.TRAIN and tokenizer.vocab_size > config.model.vocab_size:
        problems.add(
            "tokenizer.vocab_size",
            f"must not exceed model.vocab_size ({config.model.vocab_size})",
            tokenizer.vocab_size,
            f"use {config.model.vocab_size} or fewer",
        )
    file = tokenizer.file or ""
    if tokenizer.source is TokenizerSource.FILE and (not file.startswith(RAW_DATA) or ".." in file):
        problems.add(
            "tokenizer.file",
            f"must lie below {RAW_DATA} when source is file",
            tokenizer.file,
            f"use e.g. {RAW_DATA}tokenizer.json",
        )
    if tokenizer.source is TokenizerSource.HUB:
        for key in ("repository", "revision"):
            if getattr(tokenizer, key) is None:
                problems.add(f"tokenizer.{key}", "must be set when source is hub", None, "copy it from the hub's page")


_CHECKS: tuple[tuple[Callable[[Config, Problems], None], tuple[str, ...]], ...] = (
    (_check_model, ("model",)),
    (partial(_check_training, "pretrain"), ("pretrain", "model")),
    (partial(_check_training, "finetune"), ("finetune", "model")),
    (partial(_check_division, "pretrain"), ("pretrain", "runtime")),
    (partial(_check_division, "finetune"), ("finetune", "runtime")),
    (partial(_check_source, "pretrain"), ("corpus",)),
    (partial(_check_source, "finetune"), ("corpus",)),
    (_check_tokenizer, ("tokenizer", "model")),
    (_check_both_optimizers, ("pretrain", "finetune")),
    (_check_start, ("pretrain", "finetune")),
    (_check_samples, ("evaluation", "model")),
    (_check_evaluate, ("evaluate", "model")),
)
"""Checks that involve several settings, each with the sections it needs; skipped if one of these has problems."""
