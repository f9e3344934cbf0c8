"""A stand-in of the part of the Hugging Face hub's HTTP API that takes models, on a port of this machine."""

import base64
import hashlib
import http.server
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.servers import Handler, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What was committed to a model's repository."""

    visibility: str = "public"
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class UploadHub(http.server.ThreadingHTTPServer):
    """Takes models of `user`, from those who have the token."""

    def __init__(self, token: str, user: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.user = token, user
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        """What was uploaded as large files, by sha256."""
        self.licences = {"apache-2.0", "mit"}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(Handler):
    server: UploadHub

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/upload/"):  # the address itself is the permission, as on the real hub's storage
            self._take_blob(self.path.removeprefix("/upload/"), body)
        elif self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._send_json(401, {"error": "Invalid user token."})
        elif self.path == "/api/whoami-v2":
            self._send_json(200, {"type": "user", "name": self.server.user, "orgs": []})
        elif self.path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(
            r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(\.git/info/lfs/objects/batch|/.*)?", self.path
        ):
            self._of_repository(match[1], match[2] or "", body)
        else:
            self._send_json(404, {"error": f"no {self.path}"})

    def _validate(self, card: str) -> None:
        stated = re.search(r"^license: (.*)$", card.split("---")[1], re.M)
        if stated and stated[1] not in self.server.licences:
            self._send_json(
                400, {"errors": [{"message": f'"license" must be one of a list, not {stated[1]}'}], "warnings": []}
            )
        else:
            self._send_json(200, {"errors": [], "warnings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or self.server.user
        name = f"{owner}/{asked['name']}"
        if owner != self.server.user:
            self._send_json(
                403, {"error": f'You don\'t have the rights to create a model under the namespace "{owner}"'}
            )
            return
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(asked.get("visibility", "public")))
        self._send_json(status, {"url": f"{self.server.endpoint}/{name}", "id": "1", "name": name})

    def _of_repository(self, name: str, action: str, body: bytes) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self._send_json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif action.startswith("/resolve/main/"):
            self._send_file(repository.files.get(action.removeprefix("/resolve/main/")))
        elif action == "/preupload/main":
            large = {"safetensors"}
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].split(".")[-1] in large else "regular"}
                for file in json.loads(body)["files"]
            ]
            self._send_json(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif action.endswith("/objects/batch"):
            objects = [{**wanted, "actions": self._actions(wanted["oid"])} for wanted in json.loads(body)["objects"]]
            self._send_json(200, {"transfer": "basic", "objects": objects})
        elif action == "/commit/main":
            self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        else:
            is_private = repository.visibility == "private"
            about = {"_id": "1", "id": name, "sha": COMMIT, "siblings": [], "private": is_private, "tags": []}
            self._send_json(200, about)

    def _actions(self, oid: str) -> dict[str, Any]:
        return {"upload": {"href": f"{self.server.endpoint}/upload/{oid}", "header": {}}}

    def _take_blob(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.blobs[oid] = body
        self._send_json(200, {})

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                repository.files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.endpoint}/{name}/commit/{COMMIT}"
        self._send_json(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "pullRequestUrl": None})

    def _send_file(self, content: bytes | None) -> None:
        if content is None:
            self._send_json(
                404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            )
            return
        self.send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _send_json(self, status: int, values: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(values).encode(), {"Content-Type": "application/json", **(headers or {})})

    do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815


@contextmanager
def upload_hub(token: str, user: str) -> Iterator[UploadHub]:
    """A hub that accepts the token, whose owner is `user`."""
    with serving(UploadHub(token, user)) as server:
        yield server
