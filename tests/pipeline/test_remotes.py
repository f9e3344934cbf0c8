"""Checkpoints in remotes (folders, S3) and in DVC's cache: pushed, pulled in part, switched, pruned; and faults."""

import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from dvc.api import DVCFileSystem, artifacts_show
from support.clone import Clone, completed

pytestmark = pytest.mark.slow

KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret-word", "AWS_DEFAULT_REGION": "us-east-1"}
WEIGHTS = [
    path
    for stage in ("pretrain", "finetune")
    for path in (f"checkpoints/{stage}/last/model.safetensors", f"models/{stage}/model.safetensors")
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which the pipeline has run, in a folder of its own: its default remote lies beside it."""
    return completed().copy(tmp_path_factory.mktemp("remotes") / "project")


class S3:
    """S3's API on a port of this machine."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.uri = f"http://{host}:{port}"

    def ask(self, verb: str, path: str, body: bytes = b"") -> None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        connection.request(verb, path, body)
        assert connection.getresponse().status == 200
        connection.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """With a bucket named `team`."""
    pytest.importorskip("dvc_s3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        api = S3(*server.get_host_and_port())
        api.ask("PUT", "/team")
        yield api
    finally:
        server.stop()


def beside(clone: Clone, name: str) -> Clone:
    """A clone of a clone, with nothing but what Git has."""
    other = Clone(clone.directory.parent / name)
    shutil.rmtree(other.directory, ignore_errors=True)
    clone.run("git", "clone", "-q", str(clone.directory), str(other.directory))
    return other


def content(clone: Clone) -> dict[str, bytes]:
    return {path: (clone.directory / path).read_bytes() for path in WEIGHTS if (clone.directory / path).exists()}


def branch_of(clone: Clone) -> str:
    return clone.run("git", "rev-parse", "--abbrev-ref", "HEAD").stdout.strip()


def add_s3(clone: Clone, name: str, url: str, endpoint: str) -> None:
    clone.dvc("remote", "add", "--local", "--force", name, url)
    clone.dvc("remote", "modify", "--local", name, "endpointurl", endpoint)


def test_s3_gives_back_what_was_pushed_and_the_model_alone_where_that_is_asked_for(finished: Clone, s3: S3) -> None:
    add_s3(finished, "team", "s3://team/smollm", s3.uri)
    assert "files pushed" in finished.dvc("push", "--remote", "team", **KEYS).stdout
    assert "Everything is up to date" in finished.dvc("push", "--remote", "team", **KEYS).stdout
    other = beside(finished, "from-s3")
    add_s3(other, "team", "s3://team/smollm", s3.uri)
    other.dvc("pull", "--remote", "team", "models/finetune", **KEYS)
    assert set(content(other)) == {"models/finetune/model.safetensors"}
    size = sum(path.stat().st_size for path in (other.directory / ".dvc/cache/files").rglob("*") if path.is_file())
    exported = sum(path.stat().st_size for path in (finished.directory / "models/finetune").iterdir())
    assert size < exported + 10_000, "the training state was not fetched"
    other.dvc("pull", "--remote", "team", **KEYS)
    assert content(other) == content(finished)
    assert other.repro() == []


def test_a_remote_that_cannot_be_used_is_one_line_and_costs_nothing(finished: Clone, s3: S3) -> None:
    before = content(finished)
    add_s3(finished, "nowhere", "s3://team/x", "http://127.0.0.1:9")
    add_s3(finished, "no-bucket", "s3://no-such-bucket/x", s3.uri)
    add_s3(finished, "refused", "s3://team/other", s3.uri)
    said = {
        "nowhere": "Could not connect to the endpoint URL",
        "no-bucket": "The specified bucket does not exist",
        "unknown": "remote 'unknown' doesn't exist",
    }
    for remote, message in said.items():
        done = finished.dvc("push", "--remote", remote, check=False, **KEYS)
        assert done.returncode != 0
        assert "ERROR" in done.stdout
        assert message in done.stdout
        assert "Traceback" not in done.stdout
    s3.ask("POST", "/moto-api/reset-auth", b"0")  # from now on unknown keys are refused
    done = finished.dvc("push", "--remote", "refused", check=False, **KEYS)
    s3.ask("POST", "/moto-api/reset-auth", b"inf")
    assert done.returncode != 0
    assert "Forbidden" in done.stdout or "InvalidAccessKeyId" in done.stdout
    assert "secret-word" not in done.stdout
    assert content(finished) == before
    assert finished.repro() == []
    assert "up to date" in finished.dvc("status").stdout


def test_a_remote_that_lacks_the_files_says_so_and_the_pipeline_can_run_instead(finished: Clone) -> None:
    other = beside(finished, "alone")
    other.dvc("remote", "add", "--local", "--force", "--default", "empty", str(other.directory.parent / "empty"))
    done = other.dvc("pull", check=False)
    assert done.returncode != 0
    assert "failed to pull data from the cloud" in done.stdout
    # dvc.lock of another machine: what it records is not here, so it is made again, the same
    assert other.repro() == ["tokenize", "pretrain", "finetune"]
    assert content(other) == content(finished)


def test_two_revisions_switch_by_checkout(finished: Clone) -> None:
    first, branch = content(finished), branch_of(finished)
    finished.run("git", "checkout", "-q", "-b", "other-rate")
    finished.set({"pretrain.optimizer.lr": 0.01})
    assert finished.repro() == ["pretrain", "finetune"]
    finished.commit("another rate")
    second = content(finished)
    assert all(first[path] != second[path] for path in WEIGHTS)
    for revision, expected in ((branch, first), ("other-rate", second), (branch, first)):
        finished.run("git", "checkout", "-q", revision)
        finished.dvc("checkout")
        assert content(finished) == expected
        assert finished.repro() == []


def test_outputs_are_links_into_the_cache(finished: Clone) -> None:
    lock = yaml.safe_load((finished.directory / "dvc.lock").read_text())["stages"]["finetune"]["outs"]
    folder = next(out["md5"] for out in lock if out["path"] == "models/finetune")
    cache = finished.directory / ".dvc/cache/files/md5"
    files = yaml.safe_load((cache / folder[:2] / folder[2:]).read_text())
    digest = next(file["md5"] for file in files if file["relpath"] == "model.safetensors")
    output = finished.directory / "models/finetune/model.safetensors"
    finished.dvc("checkout", "--relink")  # what a run has just written may be a copy
    if shares_blocks(finished.directory):
        pytest.skip("this filesystem clones files, which shows nowhere")
    assert output.samefile(cache / digest[:2] / digest[2:])


def shares_blocks(directory: Path) -> bool:
    """Whether the filesystem clones files (then DVC does that, and links are not to be seen)."""
    import fcntl

    one, two = directory / "one", directory / "two"
    one.write_bytes(b"x" * 4096)
    try:
        with one.open("rb") as source, two.open("wb") as target:
            fcntl.ioctl(target.fileno(), 0x40049409, source.fileno())  # FICLONE
    except OSError:
        return False
    else:
        return True
    finally:
        one.unlink()
        two.unlink(missing_ok=True)


def test_an_edited_output_is_not_overwritten_by_checkout_and_is_never_recorded(finished: Clone) -> None:
    file = finished.directory / "models/finetune/generation_config.json"
    original = file.read_text()
    file.unlink()
    file.write_text("{}")
    done = finished.dvc("checkout", check=False)
    assert done.returncode != 0
    assert "--force" in done.stdout
    assert file.read_text() == "{}"
    finished.dvc("repro")
    assert file.read_text() == original
    assert finished.run("git", "status", "--porcelain").stdout == ""


def test_pruning_keeps_what_any_commit_or_experiment_refers_to(finished: Clone) -> None:
    finished.dvc("exp", "run", "--temp", "--name", "kept", "-S", "finetune.optimizer.lr=0.01")
    finished.dvc("exp", "run", "--temp", "--name", "dropped", "-S", "finetune.optimizer.lr=0.02")
    finished.dvc("exp", "remove", "dropped")
    cache = finished.directory / ".dvc/cache/files"
    before = sum(1 for path in cache.rglob("*") if path.is_file())
    finished.dvc("gc", "--all-commits", "--all-experiments", "--force")
    assert sum(1 for path in cache.rglob("*") if path.is_file()) < before
    here, branch = content(finished), branch_of(finished)
    for revision in ("other-rate", branch):
        finished.run("git", "checkout", "-q", revision)
        finished.dvc("checkout")
        assert len(content(finished)) == len(WEIGHTS)
    assert content(finished) == here
    finished.dvc("exp", "apply", "kept")
    assert finished.repro() == []
    assert content(finished) != here
    finished.run("git", "checkout", "-q", "--", ".")
    finished.dvc("checkout")


def test_an_experiment_is_shared_through_a_folder_that_is_named_whole(finished: Clone, tmp_path: Path) -> None:
    bare, folder, other = tmp_path / "bare.git", tmp_path / "folder", Clone(tmp_path / "other")
    finished.run("git", "clone", "-q", "--bare", str(finished.directory), str(bare))
    finished.run("git", "remote", "add", "team", str(bare))
    finished.dvc("exp", "save", "--name", "shared")
    finished.dvc("remote", "modify", "--local", "beside", "url", str(folder))
    finished.dvc("exp", "push", "team", "shared")
    finished.dvc("remote", "modify", "--local", "--unset", "beside", "url")
    finished.run("git", "clone", "-q", str(bare), str(other.directory))
    other.dvc("remote", "modify", "--local", "beside", "url", str(folder))
    other.dvc("exp", "pull", "origin", "shared")
    other.dvc("exp", "apply", "shared")
    assert content(other) == content(finished)
    assert len(content(other)) == len(WEIGHTS)


def test_a_file_that_left_the_cache_comes_back_from_the_remote(finished: Clone) -> None:
    finished.dvc("push")
    before = content(finished)
    shutil.rmtree(finished.directory / ".dvc/cache/files/md5")
    for path in before:
        (finished.directory / path).unlink()
    assert "not in cache" in finished.dvc("status").stdout
    finished.dvc("pull")
    assert content(finished) == before
    assert finished.repro() == []


def test_ones_own_text_is_data_of_dvcs_and_a_changed_byte_runs_all(tmp_path: Path) -> None:
    clone = Clone.of_working_tree(tmp_path / "project")
    text = clone.directory / "data/raw/input.txt"
    text.write_text("".join(f"Line {number} of a play. {number * 7919 % 1000} words.\n" for number in range(6000)))
    clone.dvc("add", "data/raw/input.txt")
    files = {"source": "files", "files": ["data/raw/input.txt"]}
    clone.set({f"corpus.{stage}.{key}": value for stage in ("pretrain", "finetune") for key, value in files.items()})
    assert clone.repro() == ["tokenize", "pretrain", "finetune"]
    clone.commit("my text")
    first = digests(clone)
    assert clone.repro() == []
    clone.dvc("push")
    other = beside(clone, "other")
    other.dvc("pull")
    assert (other.directory / "data/raw/input.txt").read_text() == text.read_text()
    assert other.repro() == []
    clone.dvc("exp", "run", "--temp", "--name", "apart", "-S", "corpus.validation_fraction=0.2", "tokenize")
    assert json.loads(clone.dvc("metrics", "diff", "--json", "HEAD", "apart").stdout)["reports/tokenize/metrics.json"]
    changed = text.read_text().replace("Line 0", "Line X", 1)
    clone.dvc("unprotect", "data/raw/input.txt")
    text.write_text(changed)
    clone.dvc("add", "data/raw/input.txt")
    assert clone.repro() == ["tokenize", "pretrain", "finetune"]
    assert digests(clone).isdisjoint(first)


def digests(clone: Clone) -> set[str]:
    """The digests of the user's text: the one that all name alike, and that of its folder."""
    pointer = yaml.safe_load((clone.directory / "data/raw/input.txt.dvc").read_text())
    (digest,) = (out["md5"] for out in pointer["outs"])
    store = mlflow.MlflowClient(f"sqlite:///{clone.directory}/mlruns/mlflow.db")
    run_id = clone.json("reports/tokenize/run.json")["mlflow_run_id"]
    for stage in ("pretrain", "finetune"):
        assert clone.json(f"data/tokens/{stage}/manifest.json")["versions"] == {"data/raw/input.txt": digest}
        uploaded = Path(store.download_artifacts(run_id, f"{stage}_manifest.json"))
        assert json.loads(uploaded.read_text())["versions"] == {"data/raw/input.txt": digest}
    lock = yaml.safe_load((clone.directory / "dvc.lock").read_text())["stages"]["tokenize"]["deps"]
    (folder,) = (dep["md5"] for dep in lock if dep["path"] == "data/raw")
    assert store.get_run(run_id).data.tags["dvc.dep.data/raw"] == folder
    return {digest, folder}


def test_another_repository_gets_the_model_by_its_name_and_version(finished: Clone, tmp_path: Path) -> None:
    finished.dvc("push")
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for tag in ("smollm@v1.0.0", "smollm#production#1"):  # as GTO writes them
        finished.run("git", *identity, "tag", "-a", tag, "-m", "a version")
    other = Clone(tmp_path)
    other.run("git", "init", "-q")
    model = (finished.directory / "models" / "finetune" / "model.safetensors").read_bytes()
    remote = ("--remote-config", f"url={finished.directory.parent / 'smollm-dvc-remote'}")
    for number, arguments in enumerate(
        (
            (str(finished.directory),),
            (str(finished.directory), "--rev", "v1.0.0"),
            (f"file://{finished.directory}", "--stage", "production", *remote),
        )
    ):
        other.dvc("artifacts", "get", arguments[0], "smollm", *arguments[1:], "-o", f"model{number}")
        assert (other.directory / f"model{number}" / "model.safetensors").read_bytes() == model
    for wanted in ({"version": "v1.0.0"}, {"stage": "production"}):
        found = artifacts_show("smollm", repo=str(finished.directory), **wanted)
        fetched = DVCFileSystem(str(finished.directory), rev=found["rev"]).read_bytes(
            f"{found['path']}/model.safetensors"
        )
        assert fetched == model
