"""Continue a prompt with a trained model, as it is written: ``python3 -m smollm.sample`` (`make sample`).

The prompt is an option, a file, or standard input; on a terminal without any of them, prompts are asked for one after
another. Texts go to standard output, everything else to standard error.
"""

import argparse
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from smollm.config.evaluation import EvaluationConfig
from smollm.config.file import load
from smollm.config.runtime import DeviceKind
from smollm.device.hardware import Hardware, choose
from smollm.errors import ConfigError
from smollm.model.export import read_model
from smollm.model.generate import Sampler
from smollm.model.llama import LlamaForCausalLM
from smollm.model.throughput import parameter_count
from smollm.operate.models import find_model
from smollm.state.workspace import Workspace

_TOKENS = 200
"""Length of a text, where the model's context has room for it and a prompt."""

_ALL = 2**31
"""As top_k: more than any vocabulary has."""

_INTERRUPTED = 130
"""The exit code of a shell's command that Ctrl-C has ended."""


@dataclass(frozen=True)
class Writer:
    """Continues prompts with one model."""

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    hardware: Hardware
    evaluation: EvaluationConfig
    """Length, temperature and top_k; its prompts are not used."""
    as_json: bool
    """Whether each text is a line of JSON, with its prompt and seed."""

    def __call__(self, prompt: str, seeds: Sequence[int]) -> None:
        """Print the prompt with a continuation, for each seed.

        Args:
            prompt: not empty; only as much of its end is used as fits into the context.
            seeds: each gives the text that it would give alone.
        """
        self._warn_of_length(prompt)
        sampler = Sampler(self.model, self.tokenizer, replace(self.evaluation, prompts=(prompt,)), self.hardware)
        for seed in seeds:
            if self.as_json:
                (text,) = sampler(seed)
                print(json.dumps({"prompt": prompt, "text": text, "seed": seed}, ensure_ascii=False), flush=True)
                continue
            if len(seeds) > 1:
                print(f"--- seed {seed}")
            print(prompt, end="", flush=True)
            self._stream(sampler, seed)

    def _stream(self, sampler: Sampler, seed: int) -> None:
        """Print a text while it grows."""
        shown = 0

        def show(texts: list[str]) -> None:
            nonlocal shown
            print(texts[0][shown:], end="", flush=True)
            shown = len(texts[0])

        (text,) = sampler(seed, show)
        print(text[shown:], flush=True)

    def _warn_of_length(self, prompt: str) -> None:
        has = len(self.tokenizer.encode(prompt, add_special_tokens=False).ids)
        fits = self.model.config.max_position_embeddings - self.evaluation.sample_tokens
        if has > fits:
            _tell(f"the model reads the last {fits:,} tokens of the prompt, which has {has:,}")


def run(arguments: Sequence[str] | None = None) -> None:
    """Print continuations as the command line asks for them.

    Raises:
        PipelineError: with a line for the user.
        SystemExit: the command line is wrong, or the user or the reader of the output has ended it.
    """
    options = _parse(arguments)
    workspace = Workspace.find(Path.cwd())
    config = load(workspace.directory / "params.yaml")
    prompt = _prompt(options)
    device = options.device and DeviceKind(options.device)
    hardware = choose(replace(config.runtime, device=device or config.runtime.device))
    with find_model(options.model, workspace) as found:
        model, tokenizer = read_model(found.directory)
    evaluation = _evaluation(options, config.evaluation, model.config.max_position_embeddings)
    model.to(hardware.device)
    _tell(
        f"{found.shown}: {parameter_count(model.config):,} parameters, on {hardware.device.type} in "
        f"{hardware.precision.value}; seed {options.seed}"
    )
    write = Writer(model, tokenizer, hardware, evaluation, options.json)
    try:
        if prompt is None:
            _converse(write, options)
        else:
            write(prompt, range(options.seed, options.seed + options.samples))
    except KeyboardInterrupt:
        print()
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m smollm.sample", description="Continue a prompt with a trained model."
    )
    add = parser.add_argument
    add(
        "--model",
        default="models/finetune",
        metavar="NAME",
        help="a folder, a DVC or Git revision (low, v1, low:pretrain), or an MLflow run's id (models/finetune)",
    )
    add("--prompt", metavar="TEXT", help="what to continue")
    add("--prompt-file", type=Path, metavar="FILE", help="a file with what to continue; -: standard input")
    add("--tokens", type=_number(int, 1), metavar="N", help=f"length of a text ({_TOKENS}, or half the context)")
    add("--samples", type=_number(int, 1), default=1, metavar="N", help="how many texts (1)")
    add("--temperature", type=_number(float, 0), metavar="T", help="0: always the likeliest token (as in params.yaml)")
    add("--top-k", type=_number(int, 0), metavar="K", help="draw from the K likeliest; 0: from all (as in params.yaml)")
    add("--seed", type=_number(int, 0), metavar="N", help="the same seed, the same text; the next sample has N + 1")
    add("--device", choices=[kind.value for kind in DeviceKind], help="where to compute (as in params.yaml)")
    add("--json", action="store_true", help="a line of JSON for each text")
    options = parser.parse_args(arguments)
    if options.prompt is not None and options.prompt_file is not None:
        parser.error("give --prompt or --prompt-file, not both")
    if options.seed is None:
        options.seed = secrets.randbelow(2**31)
    return options


def _number(kind: type[int] | type[float], low: int) -> Callable[[str], float]:
    """A converter of an option's value, which must be a number of at least `low`."""

    def convert(text: str) -> float:
        with suppress(ValueError):
            if low <= kind(text) < 2**63:
                return kind(text)
        what = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"must be a {what} of at least {low}, got {text!r}")

    return convert


def _prompt(options: argparse.Namespace) -> str | None:
    """The prompt that is given; None: ask for it. The newline that ends a file is no part of it.

    Raises:
        ConfigError: it is empty, or cannot be read.
    """
    text, name = options.prompt, "--prompt"
    if text is None:
        from_input = options.prompt_file is None or str(options.prompt_file) == "-"
        if options.prompt_file is None and sys.stdin.isatty():
            return None
        name = "standard input" if from_input else str(options.prompt_file)
        try:
            text = sys.stdin.read() if from_input else options.prompt_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{name}: must be a text in UTF-8, got: {reason}; name another --prompt-file") from None
        text = text.removesuffix("\n")
    if not text:
        raise ConfigError(f'{name}: must hold a prompt, got nothing; write e.g. --prompt "def main("')
    return str(text)


def _evaluation(options: argparse.Namespace, base: EvaluationConfig, context: int) -> EvaluationConfig:
    """How to sample: as the options say, else as the stages do.

    Raises:
        ConfigError: a text of this length leaves no room for a prompt.
    """
    tokens = options.tokens or min(_TOKENS, context // 2)
    if tokens >= context:
        raise ConfigError(
            f"--tokens must be below the model's context of {context} tokens, got {tokens}; use {context // 2}"
        )
    temperature = base.temperature if options.temperature is None else options.temperature
    top_k = base.top_k if options.top_k is None else options.top_k or _ALL
    if temperature == 0:
        temperature, top_k = 1.0, 1
    return replace(base, sample_tokens=tokens, temperature=temperature, top_k=top_k)


def _converse(write: Writer, options: argparse.Namespace) -> None:
    """Continue one prompt after another; Ctrl-C stops a text, Ctrl-D ends."""
    with suppress(ImportError):
        import readline  # noqa: F401  # the arrow keys edit, and bring back earlier prompts
    _tell("type the beginning of a text; Ctrl-C stops a continuation, Ctrl-D ends")
    seed = options.seed
    for prompt in _typed():
        with suppress(KeyboardInterrupt):
            write(prompt, range(seed, seed + options.samples))
        print()
        seed += options.samples


def _typed() -> Iterator[str]:
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        if prompt:
            yield prompt


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
