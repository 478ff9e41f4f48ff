# SPDX-License-Identifier: BSD-3-Clause
"""Handles a request from its admission to its response, within the limits of the server."""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from transformers.utils import logging

from ..finite import NotFiniteError
from .batcher import Batcher
from .body import read_body
from .caption import CaptionRequest
from .errors import CLIENT_CLOSED_REQUEST, RequestError
from .images import ImageReader
from .metrics import ServerMetrics
from .models import ServedModels
from .operation import OperationRequest
from .settings import ServerSettings


logger = logging.get_logger(__name__)

_REMEDIES = {
    "captioner": "Start it with a captioning checkpoint as CHECKPOINT.",
    "matcher": "Start it with --matcher CHECKPOINT.",
    "vqa": "Start it with --vqa CHECKPOINT.",
}


class Places:
    """Counts the images of all requests that are not answered."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def take(self, number: int) -> bool:
        """Takes places if there are enough free ones; returns whether there are."""
        if self.taken + number > self.limit:
            return False
        self.taken += number
        return True

    def free(self, number: int) -> None:
        """Gives places back."""
        self.taken -= number


class Service:
    """The models, the queue before them, and the course of a request.

    Args:
        models (`ServedModels`):
            The models.
        settings (`ServerSettings`):
            The limits.
    """

    def __init__(self, models: ServedModels, settings: ServerSettings) -> None:
        self.models = models
        self.settings = settings
        self.places = Places(settings.max_queue)
        self.images = ImageReader(settings)
        self.is_stopping = False
        self._is_aborted = False
        self._deadlines: set[asyncio.Timeout] = set()
        self.metrics = ServerMetrics(
            num_waiting=lambda: self.batcher.num_waiting, num_images=lambda: self.places.taken
        )
        self.batcher = Batcher(
            lambda job, inputs: job.run(models, inputs),
            max_batch_size=settings.max_batch_size,
            max_wait_seconds=settings.max_wait_ms / 1000,
            on_batch=self.metrics.observe_batch,
        )

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Runs batches while the application runs."""
        self.batcher.start()
        try:
            yield
        finally:
            self.stop()
            self.images.stop()
            await self.batcher.stop()

    def stop(self) -> None:
        """Refuses new requests with 503. Those that were accepted are answered."""
        self.is_stopping = True

    def abort(self) -> None:
        """Answers the requests that were accepted with 503. Called in the event loop."""
        self._is_aborted = True
        for deadline in self._deadlines:
            deadline.reschedule(asyncio.get_running_loop().time())

    @property
    def is_idle(self) -> bool:
        """Whether every accepted request is answered."""
        return self.places.taken == 0

    async def respond(self, request: Request, operation: type[OperationRequest]) -> BaseModel:
        """The response of an endpoint.

        Raises:
            RequestError: With the status of the error.
        """
        if self.is_stopping:
            raise RequestError(503, "The server is stopping. Send the request to another one.")
        if getattr(self.models, operation.head) is None:
            raise RequestError(501, f"This server has no {operation.head}. {_REMEDIES[operation.head]}")
        with self._place() as take_more:
            try:
                async with self._deadline():
                    body = await read_body(request, operation, self.settings)
                    take_more(len(body.images) - 1)
                    return await _unless_disconnected(request, self._run(body.settings, body.images))
            except TimeoutError as error:
                if self._is_aborted:
                    raise RequestError(503, "The server stopped before this request was answered.") from error
                message = f"The request took more than {self.settings.request_timeout:g} seconds."
                raise RequestError(504, message, headers=self._retry_after()) from error
            except ClientDisconnect as error:
                raise RequestError(CLIENT_CLOSED_REQUEST, "The client closed the connection.") from error

    async def _run(self, settings: OperationRequest, sources: list[bytes | str]) -> BaseModel:
        processor = None if self._keeps_size(settings) else self.models.processor_of(settings.head)
        images = await self.images.read(sources, processor)
        try:
            results = await self.batcher.submit(settings.jobs(images))
            return settings.response(results)
        except (NotFiniteError, ValidationError) as error:
            logger.error(f"A result is NaN or infinite: {error}")
            message = (
                "The model gave NaN or infinity. Look at the images and at the weights and data type of the model."
            )
            raise RequestError(500, message) from error
        except ValueError as error:  # of settings that only the model can check, such as its maximum length
            raise RequestError(422, str(error)) from error
        except Exception as error:
            logger.exception("A batch failed.")
            raise RequestError(
                500, "The model failed on this request. The log of the server has the error."
            ) from error

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Raises `TimeoutError` in a block that takes too long, or if the requests are aborted."""
        async with asyncio.timeout(self.settings.request_timeout) as deadline:
            self._deadlines.add(deadline)
            try:
                yield
            finally:
                self._deadlines.discard(deadline)

    @contextmanager
    def _place(self) -> Iterator[Any]:
        """One place until the end of the block, and a function that takes more of them."""
        num_taken = 0

        def take(number: int) -> None:
            nonlocal num_taken
            if number > 0 and not self.places.take(number):
                raise RequestError(429, "The queue is full. Retry later.", headers=self._retry_after())
            num_taken += max(number, 0)

        try:
            take(1)
            yield take
        finally:
            self.places.free(num_taken)

    def _retry_after(self) -> dict[str, str]:
        """A header with the seconds that the queue needs, by the duration of the last batch."""
        num_batches = math.ceil(self.places.taken / self.settings.max_batch_size)
        return {"Retry-After": str(max(1, math.ceil(num_batches * self.batcher.last_seconds)))}

    def _keeps_size(self, settings: OperationRequest) -> bool:
        """Whether the image goes to two models that resize it differently: the captioner and the matcher that scores."""
        captioner, matcher = self.models.captioner, self.models.matcher
        if (
            not isinstance(settings, CaptionRequest)
            or not settings.return_scores
            or captioner is None
            or matcher is None
        ):
            return False
        own, other = captioner.processor, matcher.processor
        return own.image_processor.to_dict() != other.image_processor.to_dict()


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, BaseModel]) -> BaseModel:
    """The result of `work`, which is cancelled if the client closes the connection."""
    answer, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait([answer, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


__all__ = ["Service"]
