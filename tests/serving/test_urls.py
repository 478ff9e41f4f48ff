# SPDX-License-Identifier: BSD-3-Clause
"""Images are fetched from listed hosts only, and nothing leads from there to other machines."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blip_hf.serving.urls import AllowedHosts, FetchError, UrlFetcher
from tests.support.images import encoded_image
from tests.support.serving import as_base64


IMAGE = encoded_image()


class ImageHandler(BaseHTTPRequestHandler):
    """Serves an image, redirects, and bodies that are too large or too slow."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        redirects = {
            "/moved": "/image.png",
            "/elsewhere": f"http://localhost:{port}/image.png",
            "/metadata": "http://169.254.169.254/latest/meta-data",
            "/other_port": "http://127.0.0.1:1/image.png",
            "/loop": "/loop",
            "/file": "file:///etc/passwd",
        }
        self.server.paths.append(self.path)
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
        elif self.path.startswith("/image.png"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(IMAGE)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while not self.server.is_stopped.wait(0.01):
                    self.wfile.write(b"x" * 1000)
            except OSError:
                pass
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def image_server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageHandler)
    server.paths, server.is_stopped = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.is_stopped.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def host(image_server: ThreadingHTTPServer) -> str:
    return f"127.0.0.1:{image_server.server_address[1]}"


def fetcher(allowed: str, **limits: float) -> UrlFetcher:
    return UrlFetcher(allowed, **{"max_bytes": 10_000, "timeout": 5, **limits})


@pytest.mark.parametrize("path", ["/image.png", "/image.png?size=large", "/moved"])
def test_a_listed_host_is_fetched_from(host, image_server, path):
    assert fetcher(host).fetch(f"http://{host}{path}") == IMAGE
    assert image_server.paths[0] == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/elsewhere", "the host localhost, port"),
        ("/metadata", "the host 169.254.169.254, port 80"),
        ("/other_port", "the host 127.0.0.1, port 1,"),
        ("/file", "its URL is not http://HOST"),
        ("/loop", "redirects more than 3 times"),
        ("/missing", "answered with status 404"),
        ("/endless", "larger than 10000 bytes"),
    ],
)
def test_what_leads_elsewhere_or_does_not_end_is_refused(host, path, reason):
    with pytest.raises(FetchError, match=reason):
        fetcher(host).fetch(f"http://{host}{path}")


def test_redirects_to_another_listed_host_are_refused(host):
    port = host.partition(":")[2]
    with pytest.raises(FetchError, match="redirects to another host, localhost"):
        fetcher(f"{host},localhost:{port}").fetch(f"http://{host}/elsewhere")


def test_a_slow_download_ends(host):
    with pytest.raises(FetchError, match="timed out"):
        fetcher(host, max_bytes=10**9, timeout=0.3).fetch(f"http://{host}/endless")


@pytest.mark.parametrize(
    ("allowed", "url", "reason"),
    [
        ("", "http://example.org/a.png", "fetches no URLs"),
        ("example.org", "http://other.org/a.png", "the host other.org, port 80, is not one"),
        ("example.org", "http://sub.example.org/a.png", "is not one"),
        ("example.org", "http://example.org.evil.org/a.png", "is not one"),
        ("example.org", "http://example.org@evil.org/a.png", "without a user name"),
        ("example.org", "http://user:secret@example.org/a.png", "without a user name"),
        ("example.org", "http://example.org:22/", "port 22"),
        ("example.org", "ftp://example.org/a.png", "not http://HOST"),
        ("example.org", "http:///a.png", "not http://HOST"),
        ("example.org", "http://example.org:port/a.png", "not valid"),
        ("example.org", "http://[::1/a.png", "not valid"),
        ("example.org", "http://example.org/\xfc.png", "outside ASCII"),
    ],
)
def test_other_urls_are_refused_without_a_connection(monkeypatch, allowed, url, reason):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(FetchError, match=reason):
        fetcher(allowed).fetch(url)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fe80::1", "0.0.0.0"]
)
def test_a_listed_name_with_a_private_address_is_refused(monkeypatch, address):
    """A name server may answer anything, and something else when it is asked again."""
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop())
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(FetchError, match="private network"):
        fetcher("example.org").fetch("http://example.org/a.png")


def test_a_private_address_is_fetched_from_if_the_list_has_it(image_server):
    port = image_server.server_address[1]
    listed = fetcher(f"localhost:{port},127.0.0.1,[::1]")
    assert listed.fetch(f"http://localhost:{port}/image.png") == IMAGE


def test_hosts_of_the_list_are_exact():
    assert AllowedHosts.parse(" Example.org , [::1]:80,a.org:1,a.org:2").ports == {
        "example.org": frozenset(),
        "::1": frozenset({80}),
        "a.org": frozenset({1, 2}),
    }
    for entry in ("*.example.org", "http://example.org", "example.org/images", "a.org:port", "user@a.org", "::1"):
        with pytest.raises(ValueError, match="expected exact hosts"):
            AllowedHosts.parse(entry)


def test_a_request_with_a_url_gets_what_the_image_itself_gets(start, host):
    client = start(allow_urls=host)
    by_url = client.post("/caption", json={"images": [f"http://{host}/image.png"]})
    assert by_url.status_code == 200, by_url.text
    assert by_url.json() == client.post("/caption", json={"images": as_base64(IMAGE)}).json()
    refused = client.post("/caption", json={"images": [f"http://{host}/image.png", f"http://{host}/metadata"]})
    assert refused.status_code == 422
    assert refused.json()["image_index"] == 1
