"""The command that continues prompts: where they come from, what is printed, and what is refused."""

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.clone import environment
from support.structure import ROOT
from tokenizers import Tokenizer

from smollm.config.evaluation import EvaluationConfig
from smollm.config.file import load
from smollm.config.model import ModelConfig
from smollm.device.hardware import Hardware
from smollm.errors import CheckpointError, ConfigError
from smollm.model.export import read_model, write_model
from smollm.model.generate import Sampler
from smollm.model.llama import LlamaForCausalLM
from smollm.sample.command import run

PROMPT = "the cat"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, model_config: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and an exported model, in which the command is run, on the CPU in float32."""
    params = (ROOT / "presets/tiny.yaml").read_text()
    params = params.replace("device: auto", "device: cpu").replace("precision: auto", "precision: fp32")
    (tmp_path / "params.yaml").write_text(params)
    torch.manual_seed(0)
    write_model(tmp_path / "models/finetune", model_config, LlamaForCausalLM(model_config).weights(), tokenizer, 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture
def evaluation() -> EvaluationConfig:
    return replace(load(Path("params.yaml")).evaluation, prompts=(PROMPT,), sample_tokens=20)


def stage_sample(evaluation: EvaluationConfig, cpu: Hardware, seed: int) -> str:
    """The text as a stage would sample it."""
    model, tokenizer = read_model(Path("models/finetune"))
    return Sampler(model, tokenizer, evaluation, cpu)(seed)[0]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints with 20 tokens a text."""
    run(["--tokens", "20", *arguments])
    return capsys.readouterr().out


def test_a_prompt_is_continued_as_a_stage_would_with_this_seed(
    evaluation: EvaluationConfig, cpu: Hardware, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {seed: stage_sample(evaluation, cpu, seed) for seed in (7, 8)}
    assert printed(capsys, "--prompt", PROMPT, "--seed", "7") == f"{PROMPT}{expected[7]}\n"
    both = printed(capsys, "--prompt", PROMPT, "--seed", "7", "--samples", "2")
    assert both == "".join(f"--- seed {seed}\n{PROMPT}{expected[seed]}\n" for seed in (7, 8))
    lines = printed(capsys, "--prompt", PROMPT, "--seed", "7", "--samples", "2", "--json").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": PROMPT, "text": expected[seed], "seed": seed} for seed in (7, 8)
    ]
    assert expected[7] != expected[8]


def test_temperature_and_top_k_are_those_of_the_params_unless_given(
    evaluation: EvaluationConfig, cpu: Hardware, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--prompt", PROMPT, "--seed", "7")
    hot = stage_sample(replace(evaluation, temperature=3.0, top_k=5), cpu, 7)
    assert printed(capsys, *arguments, "--temperature", "3", "--top-k", "5") == f"{PROMPT}{hot}\n"
    every = stage_sample(replace(evaluation, top_k=320), cpu, 7)
    assert printed(capsys, *arguments, "--top-k", "0") == f"{PROMPT}{every}\n"
    greedy = stage_sample(replace(evaluation, top_k=1), cpu, 1)
    assert printed(capsys, *arguments, "--temperature", "0") == f"{PROMPT}{greedy}\n"


def test_a_seed_of_its_own_is_told_and_gives_the_same_text_again(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--prompt", PROMPT, "--tokens", "20"])
    first = capsys.readouterr()
    seed = first.err.split("seed ")[1].split()[0]
    assert printed(capsys, "--prompt", PROMPT, "--seed", seed) == first.out


def test_a_prompt_comes_from_a_file_or_from_standard_input(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a 🐈 sat\non the mat"
    (workspace / "prompt.txt").write_text(f"{text}\n", encoding="utf-8")
    expected = printed(capsys, "--prompt", text, "--seed", "1")
    assert printed(capsys, "--prompt-file", "prompt.txt", "--seed", "1") == expected
    for arguments in ((), ("--prompt-file", "-")):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n"))
        assert printed(capsys, *arguments, "--seed", "1") == expected


def test_a_text_is_shown_while_it_grows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    expected = printed(capsys, "--prompt", PROMPT, "--seed", "1")
    pieces: list[str] = []

    class Screen(io.StringIO):
        def flush(self) -> None:
            pieces.append(self.getvalue())

    monkeypatch.setattr("sys.stdout", Screen())
    run(["--prompt", PROMPT, "--tokens", "20", "--seed", "1"])
    assert pieces[0] == PROMPT
    assert pieces[-1] == expected
    assert len(set(pieces)) > 10


def test_only_the_end_of_a_prompt_that_is_too_long_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--prompt", "x" * 100 + "y", "--tokens", "20", "--seed", "1"])
    said = capsys.readouterr()
    assert "reads the last 44 tokens of the prompt, which has 101" in said.err
    ending = printed(capsys, "--prompt", "x" * 43 + "y", "--seed", "1")
    assert said.out.removeprefix("x" * 100) == ending.removeprefix("x" * 43)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt: must hold a prompt, got nothing"),
        (["--prompt-file", "none.txt"], "none.txt: must be a text in UTF-8, got: No such file or directory"),
        (["--prompt-file", "binary"], "binary: must be a text in UTF-8, got: "),
        ([], "standard input: must hold a prompt, got nothing"),
        (
            ["--prompt", "x", "--tokens", "64"],
            "--tokens must be below the model's context of 64 tokens, got 64; use 32",
        ),
    ],
)
def test_what_cannot_be_continued_is_one_line(
    workspace: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ConfigError) as error:
        run(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [["--tokens", "0"], ["--seed", "-1"], ["--top-k", "x"], ["--temperature", "nan"], ["--prompt-file", "file"]],
)
def test_a_wrong_option_says_what_it_must_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--prompt", "x", *arguments])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "must be" in said or "not both" in said


def test_a_folder_without_a_model_is_refused(workspace: Path) -> None:
    shutil.rmtree(workspace / "models/finetune")
    (workspace / "models/finetune").mkdir()
    with pytest.raises(CheckpointError, match=r"config.json: must be the config of a model, got no file"):
        run(["--prompt", "x"])


class Keyboard(io.StringIO):
    """A terminal at which these lines are typed."""

    def isatty(self) -> bool:
        return True


def test_prompts_are_asked_for_on_a_terminal(
    evaluation: EvaluationConfig,
    cpu: Hardware,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", Keyboard(f"{PROMPT}\n\n{PROMPT}\n"))
    said = printed(capsys, "--seed", "7")
    first, second = (stage_sample(evaluation, cpu, seed) for seed in (7, 8))
    assert said == f"> {PROMPT}{first}\n\n> > {PROMPT}{second}\n\n> \n"


@pytest.mark.slow
def test_ctrl_c_stops_a_text_and_ctrl_d_ends_in_a_real_terminal(workspace: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(environment(), PYTHONPATH=str(ROOT / "src"))
        os.execv(sys.executable, [sys.executable, "-m", "smollm.sample", "--samples", "1000"])

    def read(until: str) -> str:
        said, deadline = "", time.monotonic() + 120
        while until not in said:
            assert time.monotonic() < deadline, said
            if select.select([terminal], [], [], 1)[0]:
                said += os.read(terminal, 4096).decode(errors="replace")
        return said

    read("\n> ")
    os.write(terminal, b"the cat\n")
    read("--- seed")
    os.write(terminal, b"\x03")
    assert "Traceback" not in read("\n> ")
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_without_a_traceback(workspace: Path) -> None:
    command = f"{sys.executable} -m smollm.sample --prompt x --samples 100000 | head -n 3"
    variables = environment() | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, shell=True, capture_output=True, env=variables, cwd=workspace, timeout=120, check=True
    )
    assert done.stdout.count(b"\n") == 3  # a text may hold what else str takes for the end of a line
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
