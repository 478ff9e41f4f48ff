# SPDX-License-Identifier: BSD-3-Clause
"""Limits of the server, which are also options of `blip-hf serve`. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any


# Smallest accepted value of each limit.
_MINIMA = {
    "max_batch_size": 1,
    "max_wait_ms": 0,
    "max_queue": 1,
    "max_images": 1,
    "max_texts": 1,
    "max_body_mb": 1,
    "workers": 1,
}


def _limit(default: Any, help_text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help_text, **metadata})


@dataclass(kw_only=True)
class ServerSettings:
    """Limits of the server. The `help` of each field documents it."""

    max_batch_size: int = _limit(
        8, "Maximum number of images (or texts) that the model runs at once; 1 for no batching"
    )
    max_wait_ms: float = _limit(5.0, "Milliseconds that a request may wait for others to fill its batch", metavar="MS")
    max_queue: int = _limit(64, "Images in the server, of all requests, beyond which it answers 429")
    max_images: int = _limit(16, "Maximum number of images of a request, at most --max_queue")
    max_texts: int = _limit(256, "Maximum number of texts or candidate answers of a request")
    max_body_mb: int = _limit(32, "Maximum size of a request, and of an image at a URL, in MiB", metavar="MIB")
    request_timeout: float = _limit(60.0, "Seconds after which a request is answered with 504", metavar="SECONDS")
    workers: int = _limit(2, "Threads that read and resize images", aliases=["num_workers"])
    allow_urls: str = _limit(
        "",
        "Hosts that images may be fetched from, such as example.org,127.0.0.1:9000; private addresses only if listed as"
        " such (default: no URL is fetched)",
        metavar="HOST[,HOST...]",
    )

    def __post_init__(self) -> None:
        for name, minimum in _MINIMA.items():
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {minimum} or more.")
        if not self.request_timeout > 0:
            raise ValueError(f"request_timeout is {self.request_timeout}, expected more than 0 seconds.")
        if self.max_images > self.max_queue:
            raise ValueError(
                f"max_images={self.max_images} is more than max_queue={self.max_queue}, so such a request would never be"
                " accepted. Lower max_images or raise max_queue."
            )

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of a request in bytes."""
        return self.max_body_mb * 2**20


__all__ = ["ServerSettings"]
