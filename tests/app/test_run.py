# SPDX-License-Identifier: BSD-3-Clause
"""The server of the page: its address, its requests to other machines, and what remains of uploads."""

import json
import os
import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from blip_hf.app.models import PageContent
from blip_hf.app.run import serve
from tests.support.ports import free_port


LOCAL = ("127.0.0.1", "::1", "localhost", None)


@pytest.fixture
def hosts(monkeypatch):
    """The hosts that this process connects to or looks up."""
    hosts = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def noted_connect(own, address):
        hosts.append(address[0])
        return connect(own, address)

    def noted_look_up(host, *args, **kwargs):
        hosts.append(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", noted_connect)
    monkeypatch.setattr(socket, "getaddrinfo", noted_look_up)
    return hosts


def test_a_page_is_served_on_this_machine_without_requests_to_others(content, hosts):
    port = free_port()
    with serve(content, port=port) as address:
        assert address == f"http://127.0.0.1:{port}/"
        html = urlopen(address).read().decode()
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert uploads.is_dir()
    assert "blip_hf" in html
    assert hosts
    assert [host for host in hosts if host not in LOCAL] == []
    assert not uploads.exists()


def post(address, content, media_type):
    return urlopen(Request(address, content, {"Content-Type": media_type})).read().decode()


def test_visitors_cannot_read_files_of_the_server(content, upload, capsys):
    with serve(content, port=free_port()) as address:
        config = json.loads(urlopen(f"{address}config").read())
        types = {component["id"]: component["type"] for component in config["components"]}
        (match,) = (
            event["id"]
            for event in config["dependencies"]
            if [types[number] for number in event["inputs"]] == ["image", "textbox"]
        )
        file = {"path": upload, "meta": {"_type": "gradio.FileData"}}
        event = {"data": [file, "a b"], "fn_index": match, "session_hash": "visitor"}
        post(f"{address}gradio_api/queue/join", json.dumps(event).encode(), "application/json")
        answer = urlopen(f"{address}gradio_api/queue/data?session_hash=visitor").read().decode()
        with pytest.raises(HTTPError, match="403"):
            urlopen(f"{address}gradio_api/file={upload}")
    assert '"success":false' in answer
    assert "InvalidPathError" in capsys.readouterr().err


def test_large_uploads_are_refused(content):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    with serve(content, port=free_port()) as address:
        body = head + bytes(65 * 2**20) + b"\r\n--x--\r\n"
        with pytest.raises(HTTPError, match="413"):
            post(f"{address}gradio_api/upload", body, "multipart/form-data; boundary=x")


def test_analytics_are_off(content):
    import gradio.analytics

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not gradio.analytics.analytics_enabled()


def test_a_port_in_use_is_an_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)), serve(PageContent(), port=port):
            pass
