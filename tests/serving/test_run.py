# SPDX-License-Identifier: BSD-3-Clause
"""The application in uvicorn, with real connections."""

import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import uvicorn

from blip_hf.serving import ServedModels, ServerSettings, create_app
from blip_hf.serving.run import DrainingServer, bind
from tests.support.serving import as_base64, held, photos, wait_until


BODY = json.dumps({"images": as_base64(photos(1)[0])}).encode()


def caption(port: int) -> int:
    """The status of a request."""
    request = Request(f"http://127.0.0.1:{port}/caption", data=BODY, headers={"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=30) as response:
            return response.status
    except HTTPError as error:
        return error.code


@contextmanager
def running(models: ServedModels, **limits: object) -> Iterator[tuple[DrainingServer, int]]:
    app = create_app(models, ServerSettings(**limits))
    sock = bind("127.0.0.1", 0)
    server = DrainingServer(uvicorn.Config(app, log_level="warning"), app)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield server, sock.getsockname()[1]
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(30)
        assert not thread.is_alive()


def metrics(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        return response.read().decode()


def test_a_closed_connection_frees_its_place(models):
    with running(models, max_wait_ms=60_000) as (_, port):
        head = f"POST /caption HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode() + BODY)
            wait_until(lambda: "blip_hf_queue_length 1.0" in metrics(port))
        wait_until(lambda: 'endpoint="/caption",status="499"} 1.0' in metrics(port))
        assert re.search(r"^blip_hf_queue_length 0.0$", metrics(port), re.MULTILINE)
        assert re.search(r"^blip_hf_images_in_server 0.0$", metrics(port), re.MULTILINE)


def test_sigterm_lets_accepted_requests_finish_and_refuses_others(models):
    with (
        running(models, max_wait_ms=0) as (server, port),
        held(models.captioner.model) as holder,
        ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(caption, port)
        wait_until(lambda: len(holder.batch_sizes) == 1)
        second = threads.submit(caption, port)
        wait_until(lambda: "blip_hf_queue_length 1.0" in metrics(port))
        server.handle_exit(signal.SIGTERM, None)
        assert caption(port) == 503
        holder.release()
        assert (first.result(), second.result()) == (200, 200)
        wait_until(lambda: server.should_exit)


def test_a_second_signal_refuses_what_was_accepted(models):
    with running(models, max_wait_ms=60_000) as (server, port), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(caption, port)
        wait_until(lambda: "blip_hf_queue_length 1.0" in metrics(port))
        server.handle_exit(signal.SIGINT, None)
        server.handle_exit(signal.SIGINT, None)
        assert waiting.result() == 503
        wait_until(lambda: server.should_exit)


def test_a_port_in_use_is_named():
    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1, port {port}, cannot be used: Address already in use"):
            bind("127.0.0.1", port)
