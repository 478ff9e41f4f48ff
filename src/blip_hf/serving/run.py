# SPDX-License-Identifier: BSD-3-Clause
"""Runs the application with uvicorn until a signal, and then until every accepted request is answered."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT, refuses requests with 503 and answers the accepted ones; on the second, refuses them too."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, on_start: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._service = app.state.service
        self._on_start = on_start
        self._is_urgent = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen."""
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self._is_urgent = self._service.is_stopping
        self._service.stop()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; returns whether to exit."""
        if self._is_urgent:
            self._service.abort()
        if self._service.is_stopping and self._service.is_idle:
            self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 picks a free one.

    Raises:
        ValueError: If the address cannot be used.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{host}, port {port}, cannot be used: {reason}. Pass another host or port; 0 picks one."
        ) from error
    return sock


def run(app: FastAPI, sock: socket.socket, *, on_start: Callable[[], None], log_requests: bool = False) -> None:
    """Serves an application of [`create_app`] at a socket, and returns after SIGTERM or SIGINT.

    `on_start` is called when the server takes connections.
    """
    config = uvicorn.Config(
        app, log_level="info" if log_requests else "warning", access_log=log_requests, server_header=False
    )
    DrainingServer(config, app, on_start).run(sockets=[sock])


__all__ = ["DrainingServer", "bind", "run"]
