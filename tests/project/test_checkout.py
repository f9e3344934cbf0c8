"""A clone is the same on every machine, whatever Git, Python and the shell are set to there."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support.clone import Clone, environment
from support.structure import ROOT

COMMANDS = [stage["cmd"] for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()]


def test_a_clone_with_line_ends_of_windows_has_the_same_bytes(tmp_path: Path) -> None:
    project = Clone.of_working_tree(tmp_path / "project", with_store=False)
    for number, settings in enumerate((["core.autocrlf=true"], ["core.eol=crlf", "core.autocrlf=false"])):
        options = [word for setting in settings for word in ("-c", setting)]
        clone = tmp_path / f"clone{number}"
        subprocess.run(["git", *options, "clone", "--quiet", project.directory, clone], check=True)
        names = subprocess.run(
            ["git", "-C", clone, "ls-files", "-z"], capture_output=True, text=True, check=True
        ).stdout.split("\0")
        for name in filter(None, names):
            if not (clone / name).is_symlink():
                assert (clone / name).read_bytes() == (project.directory / name).read_bytes(), name
        status = ["git", *options, "-C", clone, "status", "--porcelain"]
        assert subprocess.run(status, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.parametrize("safe", [False, True], ids=["", "PYTHONSAFEPATH"])
@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish"])
def test_a_stage_finds_its_code_and_what_the_user_has_on_pythonpath(shell: str, safe: bool, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "of_the_user.py").touch()
    (tmp_path / "own" / "smollm.py").touch()
    script = "import os, smollm, stages; print(smollm.__file__, stages.__file__); " + "{}"
    for command in COMMANDS:
        assert command.count("python3 -m stages.") == 1
        before, _, _ = command.partition("-m stages.")
        for path, last in ((None, "pass"), (str(tmp_path / "own"), "import of_the_user")):
            variables = {"PYTHONPATH": path} if path else {}
            done = subprocess.run(
                [shell, "-c", f"{before} -c {shlex.quote(script.format(last))}"],
                cwd=ROOT,
                env=environment() | variables | ({"PYTHONSAFEPATH": "1"} if safe else {}),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert [os.path.realpath(file) for file in done.stdout.split()] == [
                str(ROOT / "src" / "smollm" / "__init__.py"),
                str(ROOT / "stages" / "__init__.py"),
            ]
