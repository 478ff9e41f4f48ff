# SPDX-License-Identifier: BSD-3-Clause
"""The server of the page: its address, its requests to other machines, and what remains of uploads."""

import os
import socket
from pathlib import Path
from urllib.request import urlopen

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
