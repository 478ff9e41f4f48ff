# SPDX-License-Identifier: BSD-3-Clause
"""What `/metrics` shows, in the format of Prometheus."""

import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """Counters and histograms of one application.

    Args:
        num_waiting (callable):
            Returns the number of inputs that wait for the model.
        num_images (callable):
            Returns the number of images of all requests that are not answered.
    """

    def __init__(self, num_waiting: Callable[[], int], num_images: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "blip_hf_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "blip_hf_request_seconds", "Seconds per request", ["endpoint"], buckets=_SECONDS, registry=self.registry
        )
        self.batch_size = Histogram(
            "blip_hf_batch_size", "Inputs per batch", ["job"], buckets=_BATCH_SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "blip_hf_batch_seconds", "Seconds per batch", ["job"], buckets=_SECONDS, registry=self.registry
        )
        waiting = Gauge("blip_hf_queue_length", "Inputs that wait for the model", registry=self.registry)
        waiting.set_function(num_waiting)
        images = Gauge("blip_hf_images_in_server", "Images of requests without answer", registry=self.registry)
        images.set_function(num_images)

    def observe_batch(self, job: str, size: int, seconds: float) -> None:
        """Counts a batch."""
        self.batch_size.labels(job).observe(size)
        self.batch_seconds.labels(job).observe(seconds)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts requests with their status and time; paths other than the endpoints count as `other`."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, endpoints: Collection[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
        start, status = time.monotonic(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            self.metrics.requests.labels(endpoint, status).inc()
            self.metrics.request_seconds.labels(endpoint).observe(time.monotonic() - start)


__all__ = ["CountRequests", "ServerMetrics"]
