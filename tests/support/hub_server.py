# SPDX-License-Identifier: BSD-3-Clause
"""A stand-in for the Hub's HTTP API on this machine: creating, committing to and downloading from repositories."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_api
from transformers.utils import hub as transformers_hub


TOKEN = "hf_stand_in"
OWNER = "me"


class HubServer:
    """Repositories by their names: the files of each, by path."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.is_private: dict[str, bool] = {}
        self.requests: list[tuple[str, str]] = []
        self.address = ""

    def environment(self) -> dict[str, str]:
        """Variables that make `huggingface_hub` use this server."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def use_hub(hub: HubServer, home: Path) -> Iterator[None]:
    """Makes `huggingface_hub` use this server in this process, with files in the folder `home`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(hf_api.api, "endpoint", hub.address)
        patch.setattr(transformers_hub, "_hf_api", None)  # keeps the address that it was made with
        patch.setenv("HF_TOKEN", TOKEN)
        yield


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Serves an empty Hub until the block ends. It knows one user, `me`, and one token."""
    state = HubServer()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        try:
            if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[\w.-]+/(.+)", path):
                self._send_file(found[1], found[2])
            else:
                self._send(200, json.dumps(self._api(path, body)).encode(), {"Content-Type": "application/json"})
        except _RefusedError as refusal:
            content = json.dumps({"error": refusal.message}).encode()
            self._send(refusal.status, content, {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message})

    def _api(self, path: str, body: bytes) -> Any:
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _RefusedError(401, "Invalid credentials")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/whoami-v2":
            return {"type": "user", "name": OWNER}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if found := re.fullmatch(
            r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit|revision|tree)/([\w.-]+)(/.*)?", path
        ):
            files = self._files(found[1])
            if found[2] == "preupload":
                return {"files": [self._upload_mode(file) for file in json.loads(body)["files"]]}
            if found[2] == "commit":
                return self._commit(found[1], files, body)
            if found[2] == "tree":
                return self._tree(files, (found[4] or "").strip("/"))
            siblings = [{"rfilename": name} for name in files]
            return {"id": found[1], "sha": _commit_of(files), "siblings": siblings, "tags": [], "private": False}
        raise _RefusedError(404, f"{self.command} {path} is not part of the stand-in")

    def _create(self, wanted: dict[str, Any]) -> Any:
        owner = wanted.get("organization") or OWNER
        if owner != OWNER:
            raise _RefusedError(403, f"You don't have the rights to create a model under the namespace {owner}")
        name = f"{owner}/{wanted['name']}"
        if name not in self.hub.repos:
            self.hub.repos[name] = {}
            self.hub.is_private[name] = bool(wanted.get("private") or wanted.get("visibility") == "private")
        return {"url": f"{self.hub.address}/{name}", "name": name, "id": name}

    @staticmethod
    def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
        return {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}

    @staticmethod
    def _tree(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
        names = [name for name in files if name.startswith(f"{folder}/" if folder else "")]
        if folder and not names:
            raise _RefusedError(404, f"{folder} does not exist", "EntryNotFound")
        return [{"type": "file", "path": name, "size": len(files[name]), "oid": _oid(files[name])} for name in names]

    def _commit(self, name: str, files: dict[str, bytes], body: bytes) -> Any:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = _commit_of(files)
        return {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit, "success": True}

    def _files(self, name: str) -> dict[str, bytes]:
        if name not in self.hub.repos:
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        return self.hub.repos[name]

    def _send_file(self, name: str, path: str) -> None:
        files = self._files(name)
        headers = {"X-Repo-Commit": _commit_of(files)}
        if path not in files:
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        else:
            self._send(200, files[path], {**headers, "ETag": f'"{_oid(files[path])}"'})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _commit_of(files: dict[str, bytes]) -> str:
    return _oid(b"".join(name.encode() + files[name] for name in sorted(files)))
