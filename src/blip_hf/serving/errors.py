# SPDX-License-Identifier: BSD-3-Clause
"""The error of a request: its HTTP status, the reason, and the image that it concerns."""

from collections.abc import Mapping


# nginx's status for a client that closed the connection. Nobody receives it, but the metrics count it.
CLIENT_CLOSED_REQUEST = 499


class RequestError(Exception):
    """Ends a request with a status and a reason.

    Args:
        status (`int`):
            HTTP status.
        message (`str`):
            The reason, for the client.
        image_index (`int`, *optional*):
            Position of the image that caused it, from 0.
        headers (mapping, *optional*):
            Headers of the response.
    """

    def __init__(
        self, status: int, message: str, *, image_index: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.image_index = image_index
        self.headers = headers

    def content(self) -> dict[str, str | int]:
        """The body of the response."""
        place = {} if self.image_index is None else {"image_index": self.image_index}
        return {"detail": self.message, **place}


__all__ = ["CLIENT_CLOSED_REQUEST", "RequestError"]
