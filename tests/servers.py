"""Real servers for tests: MLflow's over HTTP, a slow way to it, PostgreSQL."""

import http.client
import http.server
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from workspace import environment


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
                command, cwd=self.directory, env=environment(), stdout=log, stderr=log, start_new_session=True
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


class Way:
    """A proxy to a server, each answer of which waits for `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.uri = ""


@contextmanager
def slow_way(port: int) -> Iterator[Way]:
    """A proxy to the server on `port` of this machine."""
    way = Way()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(way.seconds)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        way.uri = f"http://127.0.0.1:{server.server_port}"
        yield way
    finally:
        server.shutdown()
        server.server_close()


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
