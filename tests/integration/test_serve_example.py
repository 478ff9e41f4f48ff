# SPDX-License-Identifier: BSD-3-Clause
"""The Dockerfile of the server names existing files, pins, and options, and its health check works. Nothing is built."""

import json
import re
import subprocess
import sys

import httpx2
import pytest

from blip_hf.cli import load_command
from blip_hf.cli.parser import parse
from tests.support.paths import EXAMPLES, ROOT


DOCKERFILE = (EXAMPLES / "serve" / "Dockerfile").read_text().replace("\\\n", " ")
README = (EXAMPLES / "serve" / "README.md").read_text()


def instructions(name):
    return re.findall(rf"^ *{name} (.*)$", DOCKERFILE, re.MULTILINE)


def test_copied_files_exist():
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert "src" in copied
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_version_of_torch_is_pinned():
    assert re.search(r"grep '\^torch=='", DOCKERFILE)
    assert len(re.findall(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)) == 1


def test_the_server_runs_without_rights():
    users = instructions("USER")
    assert users == ["10001"]
    assert DOCKERFILE.index("USER") < DOCKERFILE.index("ENTRYPOINT")


def test_the_command_parses():
    (entrypoint,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")[-1:]
    program, name, *options = json.loads(entrypoint) + json.loads(command)
    (parsed,) = parse(load_command(name), options)
    assert (program, name, parsed.host, parsed.checkpoint) == ("blip-hf", "serve", "0.0.0.0", "/model")
    assert instructions("EXPOSE") == [str(parsed.port)]
    (given,) = re.findall(r"blip-hf-serve (/model.*)$", README, re.MULTILINE)
    parse(load_command(name), [*options[:-1], *given.split()])


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_health_check_follows_the_status(status, is_healthy):
    python, flag, code = json.loads(re.search(r"HEALTHCHECK .* CMD (\[.*\])", DOCKERFILE)[1])
    assert (python, flag) == ("python", "-c")
    server = f"""
import http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response({status}); self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
"""
    check = code.replace("'http://127.0.0.1:8000/healthz'", "f'http://127.0.0.1:{server.server_port}/healthz'")
    assert check != code
    done = subprocess.run([sys.executable, "-c", server + check], capture_output=True, check=False)
    assert (done.returncode == 0) == is_healthy


def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("dog.jpg", "boat.jpg"):
        (tmp_path / name).write_bytes(b"image")
    answer = {"captions": [{"image_index": 0, "text": "a dog"}, {"image_index": 1, "text": "a boat"}]}
    request = httpx2.Request("POST", "http://127.0.0.1:8000/caption")
    monkeypatch.setattr(httpx2, "post", lambda *_, **__: httpx2.Response(200, json=answer, request=request))
    exec(code, {})
    assert capsys.readouterr().out == "0 a dog\n1 a boat\n"
