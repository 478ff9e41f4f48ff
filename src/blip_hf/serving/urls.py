# SPDX-License-Identifier: BSD-3-Clause
"""Fetches images from listed hosts only, in a way that cannot reach other machines of the server's network."""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit


_DEFAULT_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 3
_CHUNK_BYTES = 2**16


class FetchError(ValueError):
    """A URL that is not allowed or cannot be fetched. The message is for the client."""


@dataclass(frozen=True)
class AllowedHosts:
    """Host names and addresses, each with the ports that it may be fetched from; no ports means those of the schemes."""

    ports: dict[str, frozenset[int]]

    @classmethod
    def parse(cls, text: str) -> "AllowedHosts":
        """Reads `HOST[:PORT],...`.

        Raises:
            ValueError: If an entry is not a host.

        Example:
            >>> AllowedHosts.parse("Example.org,127.0.0.1:9000").ports
            {'example.org': frozenset(), '127.0.0.1': frozenset({9000})}
        """
        ports: dict[str, frozenset[int]] = {}
        for entry in filter(None, map(str.strip, text.split(","))):
            try:
                parts = urlsplit(f"//{entry}")
                host, port = parts.hostname, parts.port
            except ValueError:
                host = port = None
            if host is None or "*" in host or parts.path or parts.username is not None:
                raise ValueError(
                    f"allow_urls has {entry!r}, expected exact hosts such as example.org, 127.0.0.1:9000 or [::1],"
                    " with commas."
                )
            ports[host] = ports.get(host, frozenset()) | ({port} if port else set())
        return cls(ports)

    def check(self, parts: SplitResult) -> tuple[str, int]:
        """The host and port of a URL.

        Raises:
            FetchError: If they are not listed.
        """
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise FetchError(f"its URL is not valid: {error}.") from error
        if not self.ports:
            raise FetchError(
                "this server fetches no URLs. Send the image itself, or start the server with --allow_urls."
            )
        if parts.scheme not in _DEFAULT_PORTS or host is None or parts.username is not None:
            raise FetchError("its URL is not http://HOST/... or https://HOST/... without a user name.")
        port = port or _DEFAULT_PORTS[parts.scheme]
        if host not in self.ports or port not in (self.ports[host] or _DEFAULT_PORTS.values()):
            raise FetchError(f"the host {host}, port {port}, is not one that this server fetches from.")
        return host, port

    def check_addresses(self, addresses: Iterable[str]) -> None:
        """Raises a `FetchError` for an address of a private network or of this machine that is not listed itself."""
        for address in addresses:
            if not ipaddress.ip_address(address.partition("%")[0]).is_global and address not in self.ports:
                raise FetchError("its host has an address in a private network, which is not listed.")


class UrlFetcher:
    """Downloads files from allowed hosts. The address that was checked is the one that is connected to.

    Args:
        allowed (`str`):
            Hosts as for `AllowedHosts.parse`; empty to refuse all URLs.
        max_bytes (`int`):
            Maximum size of a file.
        timeout (`float`):
            Seconds for a file with all its redirects.
    """

    def __init__(self, allowed: str, *, max_bytes: int, timeout: float) -> None:
        self.allowed = AllowedHosts.parse(allowed)
        self.max_bytes = max_bytes
        self.timeout = timeout

    def fetch(self, url: str) -> bytes:
        """Downloads a file. Follows redirects within its host.

        Raises:
            FetchError: If the URL or a redirect is not allowed, or the download fails, is too large or too slow.
        """
        deadline = time.monotonic() + self.timeout
        first_host = None
        for _ in range(_MAX_REDIRECTS + 1):
            parts, host, port = self._check(url)
            if first_host not in (None, host):
                raise FetchError(f"{first_host} redirects to another host, {host}.")
            first_host = host
            try:
                location, content = self._request(parts, host, port, deadline)
            except (OSError, http.client.HTTPException) as error:
                raise FetchError(f"fetching it from {host} failed: {error or type(error).__name__}.") from error
            if location is None:
                return content
            url = urljoin(url, location)
        raise FetchError(f"{first_host} redirects more than {_MAX_REDIRECTS} times.")

    def _check(self, url: str) -> tuple[SplitResult, str, int]:
        if not url.isascii():
            raise FetchError("its URL has characters outside ASCII. Percent-encode them.")
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise FetchError(f"its URL is not valid: {error}.") from error
        return parts, *self.allowed.check(parts)

    def _request(self, parts: SplitResult, host: str, port: int, deadline: float) -> tuple[str | None, bytes]:
        """Where a response redirects to, or its content."""
        is_https = parts.scheme == "https"
        connection = (http.client.HTTPSConnection if is_https else http.client.HTTPConnection)(host, port)
        # The connection forgets its socket when the response is the last one.
        sock = connection.sock = self._connect(host, port, is_https, deadline)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "blip_hf"})
            response = connection.getresponse()
            if response.status in _REDIRECTS and response.headers.get("location"):
                return response.headers["location"], b""
            if response.status != http.client.OK:
                raise FetchError(f"{host} answered with status {response.status}.")
            return None, self._read(response, sock, deadline)
        finally:
            connection.close()

    def _connect(self, host: str, port: int, is_https: bool, deadline: float) -> socket.socket:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [(str(address[0]), int(address[1])) for *_, address in found]
        self.allowed.check_addresses(address for address, _ in addresses)
        sock = _connect_to_any(addresses, deadline)
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host) if is_https else sock

    def _read(self, response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> bytes:
        content = bytearray()
        while chunk := response.read1(_CHUNK_BYTES):
            content += chunk
            if len(content) > self.max_bytes:
                raise FetchError(f"it is larger than {self.max_bytes} bytes.")
            sock.settimeout(_remaining(deadline))
        return bytes(content)


def _connect_to_any(addresses: Sequence[tuple[str, int]], deadline: float) -> socket.socket:
    """A connection to the first address that accepts one, such as the IPv4 one of a host with both."""
    *others, last = addresses
    for address in others:
        try:
            return socket.create_connection(address, timeout=_remaining(deadline))
        except OSError:
            continue
    return socket.create_connection(last, timeout=_remaining(deadline))


def _remaining(deadline: float) -> float:
    """Seconds until a deadline; raises if it has passed."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining


__all__ = ["AllowedHosts", "FetchError", "UrlFetcher"]
