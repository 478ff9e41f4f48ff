# SPDX-License-Identifier: BSD-3-Clause
"""Runs requests that wait together and have equal settings as one batch, in the one thread of the model."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol


class Job(Protocol):
    """What the model does with a batch, with all its settings. Inputs of equal jobs share batches."""

    name: ClassVar[str]


@dataclass(eq=False)
class _Item:
    job: Job
    input: Any
    result: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    arrival: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects inputs and runs them in batches, oldest first. All methods belong to one event loop.

    A batch starts when it is full or its oldest input has waited for `max_wait_seconds`. If a batch fails, its inputs are
    run one by one, so that an input cannot fail those of other requests.

    Args:
        run (callable):
            Takes a job and its inputs, and returns one result for each input. Called in the thread of the model.
        max_batch_size (`int`):
            Maximum number of inputs of a batch.
        max_wait_seconds (`float`):
            Time that an input may wait for others while the model is idle.
        on_batch (callable, *optional*):
            Called with the name of the job, the number of inputs and the seconds of each batch.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[Any]], Sequence[Any]],
        *,
        max_batch_size: int,
        max_wait_seconds: float,
        on_batch: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self._run_job = run
        self.max_batch_size = max_batch_size
        self.max_wait_seconds = max_wait_seconds
        self.last_seconds = 0.0
        self._on_batch = on_batch
        self._waiting: deque[_Item] = deque()
        self._has_news = asyncio.Event()
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._worker: asyncio.Task | None = None

    @property
    def num_waiting(self) -> int:
        """Inputs that no batch has taken yet."""
        return len(self._waiting)

    def start(self) -> None:
        """Starts to take batches."""
        self._worker = asyncio.create_task(self._run_batches())

    async def stop(self) -> None:
        """Cancels what waits, and returns when the running batch is done."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        for item in self._waiting:
            item.result.cancel()
        await asyncio.to_thread(self._model_thread.shutdown)

    async def submit(self, jobs: Sequence[tuple[Job, Any]]) -> list[Any]:
        """Results of pairs of a job and its input, in order. If the caller is cancelled, the pairs that wait are removed."""
        items = [_Item(job, value) for job, value in jobs]
        self._waiting.extend(items)
        self._has_news.set()
        try:
            return list(await asyncio.gather(*(item.result for item in items)))
        finally:
            for item in items:
                item.result.cancel()
            self._waiting = deque(item for item in self._waiting if not item.result.done())

    async def _run_batches(self) -> None:
        while True:
            await self._run_batch(await self._next_batch())

    async def _next_batch(self) -> list[_Item]:
        """The oldest input and those with an equal job, when they are enough or have waited long enough."""
        while True:
            self._has_news.clear()
            batch = self._first_batch()
            remaining = batch[0].arrival + self.max_wait_seconds - time.monotonic() if batch else None
            if len(batch) == self.max_batch_size or (remaining is not None and remaining <= 0):
                taken = set(batch)
                self._waiting = deque(item for item in self._waiting if item not in taken)
                return batch
            try:
                await asyncio.wait_for(self._has_news.wait(), remaining)
            except TimeoutError:
                continue

    def _first_batch(self) -> list[_Item]:
        batch: list[_Item] = []
        for item in self._waiting:
            if item.job == self._waiting[0].job and len(batch) < self.max_batch_size:
                batch.append(item)
        return batch

    async def _run_batch(self, batch: list[_Item]) -> None:
        try:
            results = await self._run(batch)
        except Exception as error:
            if len(batch) == 1:
                if not batch[0].result.done():
                    batch[0].result.set_exception(error)
                return
            for item in batch:
                if not item.result.done():
                    await self._run_batch([item])
            return
        for item, result in zip(batch, results, strict=True):
            if not item.result.done():
                item.result.set_result(result)

    async def _run(self, batch: list[_Item]) -> Sequence[Any]:
        job, inputs = batch[0].job, [item.input for item in batch]
        start = time.monotonic()
        results = await asyncio.get_running_loop().run_in_executor(self._model_thread, self._run_job, job, inputs)
        self.last_seconds = time.monotonic() - start
        if self._on_batch is not None:
            self._on_batch(job.name, len(batch), self.last_seconds)
        return results


__all__ = ["Batcher", "Job"]
