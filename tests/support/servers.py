"""Servers for tests: MLflow's over HTTP, a slow way to it, PostgreSQL, a stand-in of the Hugging Face hub."""

import http.client
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from support.clone import environment

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The one revision of what the stand-in of the hub has."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class MLflowServer:
    """`mlflow server` on a port of this machine, which can die and come back."""

    def __init__(self, directory: Path, backend: str | None = None) -> None:
        self.directory, self.port = directory, free_port()
        self.backend = backend or f"sqlite:///{directory}/server.db"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.directory / "artifacts")]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # eight processes less, as in `ui`
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline, (self.directory / "server.log").read_text()[-3000:]
            time.sleep(0.2)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """kill -9, of its workers too."""
        if self._process is not None:
            with self._process:
                os.killpg(self._process.pid, 9)
            self._process = None


@contextmanager
def mlflow_server(directory: Path, backend: str | None = None) -> Iterator[MLflowServer]:
    """A server that is not started yet."""
    server = MLflowServer(directory, backend)
    try:
        yield server
    finally:
        server.kill()


Served = TypeVar("Served", bound=http.server.ThreadingHTTPServer)


@contextmanager
def serving(server: Served) -> Iterator[Served]:
    """Let a server answer in a thread."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Way:
    """A proxy to a server, each answer of which waits for `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.uri = ""


class Handler(http.server.BaseHTTPRequestHandler):
    """A quiet handler of requests over connections that stay open."""

    protocol_version = "HTTP/1.1"

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Answer the request."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def slow_way(port: int) -> Iterator[Way]:
    """A proxy to the server on `port` of this machine."""
    way = Way()

    class PassingOn(Handler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(way.seconds)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            own = ("transfer-encoding", "content-length", "connection")
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in own}
            self.send(answer.status, answer.read(), headers)
            connection.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), PassingOn)) as server:
        way.uri = f"http://127.0.0.1:{server.server_port}"
        yield way


class Hub(http.server.ThreadingHTTPServer):
    """Answers as the hub does, and keeps what it was asked for, and by whom."""

    def __init__(self, directory: Path, token: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.directory, self.token = directory, token
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def environment(self) -> dict[str, str]:
        """What leads the hub's own client here; it reads this when it is imported."""
        offline = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", **offline, **quiet}


class _HubHandler(Handler):
    server: Hub

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = urllib.parse.unquote(self.path).partition("?")
        self.server.requests.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        match = re.fullmatch(
            r"/(?:api/)?(?:(datasets|models)/)?([\w-]+/[\w-]+)"
            r"(?:/(revision|tree|paths-info|resolve)/([\w-]+)(?:/(.*))?)?",
            path,
        )
        kind, name, action, revision, file = match.groups() if match else (None,) * 5
        root = self.server.directory / (kind or "models") / str(name)
        if match is None or not root.is_dir():
            self.send(404, b"no such repository", {"X-Error-Code": "RepoNotFound"})
        elif self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.send(401, b"gated", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif revision not in (None, COMMIT, "main"):
            self.send(404, b"no such revision", {"X-Error-Code": "RevisionNotFound"})
        elif action == "tree":
            folder = root / (file or "")
            found = folder.rglob("*") if "recursive=true" in query.lower() else folder.glob("*")
            self._send_json([self._entry(root, path) for path in sorted(found)])
        elif action == "paths-info":
            wanted = urllib.parse.parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            self._send_json([self._entry(root, root / path) for path in wanted if (root / path).exists()])
        elif action == "resolve":
            self._send_file(root / str(file))
        else:
            files = [{"rfilename": f.relative_to(root).as_posix()} for f in root.rglob("*") if f.is_file()]
            about = {"_id": "1", "id": name, "sha": COMMIT, "siblings": files, "private": False, "tags": []}
            self._send_json(about)

    @staticmethod
    def _entry(root: Path, path: Path) -> dict[str, object]:
        kind, size = ("file", path.stat().st_size) if path.is_file() else ("directory", 0)
        return {"type": kind, "path": path.relative_to(root).as_posix(), "size": size, "oid": "0" * 40}

    def _send_file(self, path: Path) -> None:
        """A file, or the range of it that was asked for."""
        if not path.is_file():
            self.send(404, b"no such file", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{len(content)}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send(200, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send(206, content[first : last + 1], headers)

    def _send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    do_GET = do_POST = do_HEAD = _answer  # noqa: N815


@contextmanager
def hub(directory: Path, token: str | None = None) -> Iterator[Hub]:
    """The part of the hub's HTTP API that downloads and streaming need, on a port of this machine.

    Args:
        directory: ``datasets/<owner>/<name>/...`` and ``models/<owner>/<name>/...``, of one revision, `COMMIT`.
        token: without it everything is gated; None: nothing is.
    """
    with serving(Hub(directory, token)) as server:
        yield server


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """The address of a new PostgreSQL database with a password, from Debian's packages."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg2")
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    data, port = directory / "data", free_port()
    directory.mkdir(parents=True)
    if user:
        for folder in (directory, *directory.parents):
            if folder.stat().st_uid == os.geteuid() and folder.is_relative_to(tempfile.gettempdir()):
                folder.chmod(folder.stat().st_mode | 0o055)
        shutil.chown(directory, "postgres")
    password = directory / "password"
    password.write_text("secret-word\n")
    password.chmod(0o644)
    run = {"check": True, "cwd": directory, "stdout": subprocess.DEVNULL}
    subprocess.run(
        [*user, programs[-1] / "initdb", "-D", data, "-U", "team", "-A", "scram-sha-256", "--pwfile", password], **run
    )
    options = f"-p {port} -k {directory} -h 127.0.0.1"
    control = [*user, programs[-1] / "pg_ctl", "-D", data, "-w", "-l", directory / "log"]
    subprocess.run([*control, "-o", options, "start"], **run)
    try:
        yield f"postgresql+psycopg2://team:secret-word@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)
