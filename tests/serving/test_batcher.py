# SPDX-License-Identifier: BSD-3-Clause
"""Inputs of equal jobs are run together, those of other jobs apart, and a bad one fails alone."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from blip_hf.serving.batcher import Batcher


@dataclass(frozen=True)
class Double:
    """A job that doubles numbers."""

    setting: int = 0
    name: str = "double"


class Runs:
    """Runs `Double`, and notes the batches and their threads. Refuses the number 13."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[int]]] = []
        self.threads: set[int] = set()

    def __call__(self, job: Double, inputs: Sequence[int]) -> list[int]:
        self.batches.append((job.setting, list(inputs)))
        self.threads.add(threading.get_ident())
        if 13 in inputs:
            raise ValueError("13 is refused")
        return [2 * value for value in inputs]


def run_batches(test, **settings):
    """Runs an asynchronous test with a batcher; returns its result and the runs."""
    runs = Runs()

    async def main():
        batcher = Batcher(runs, **{"max_batch_size": 4, "max_wait_seconds": 0.05, **settings})
        batcher.start()
        try:
            return await test(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main()), runs


def test_requests_with_equal_settings_share_a_batch():
    async def test(batcher):
        return await asyncio.gather(*(batcher.submit([(Double(), number)]) for number in range(4)))

    results, runs = run_batches(test, max_wait_seconds=30)  # a full batch does not wait
    assert results == [[0], [2], [4], [6]]
    assert runs.batches == [(0, [0, 1, 2, 3])]


def test_a_batch_starts_after_the_maximum_wait():
    async def test(batcher):
        return await batcher.submit([(Double(), 1), (Double(), 2)])

    results, runs = run_batches(test)
    assert results == [2, 4]
    assert runs.batches == [(0, [1, 2])]


def test_requests_with_other_settings_do_not_share_a_batch():
    async def test(batcher):
        return await batcher.submit([(Double(number % 2), number) for number in range(4)])

    results, runs = run_batches(test)
    assert results == [0, 2, 4, 6]
    assert runs.batches == [(0, [0, 2]), (1, [1, 3])]


def test_a_large_request_is_split():
    async def test(batcher):
        return await batcher.submit([(Double(), number) for number in range(6)])

    results, runs = run_batches(test)
    assert results == [0, 2, 4, 6, 8, 10]
    assert runs.batches == [(0, [0, 1, 2, 3]), (0, [4, 5])]


def test_an_input_that_fails_does_not_fail_others_of_its_batch():
    async def test(batcher):
        requests = [batcher.submit([(Double(), number)]) for number in (1, 13, 2)]
        return await asyncio.gather(*requests, return_exceptions=True)

    (first, error, last), runs = run_batches(test)
    assert (first, last) == ([2], [4])
    assert isinstance(error, ValueError)
    assert str(error) == "13 is refused"
    assert runs.batches == [(0, [1, 13, 2]), (0, [1]), (0, [13]), (0, [2])]


def test_a_cancelled_request_leaves_the_queue():
    async def test(batcher):
        tasks = [asyncio.create_task(batcher.submit([(Double(), number)])) for number in (1, 2)]
        await asyncio.sleep(0)
        waiting = batcher.num_waiting
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert (waiting, batcher.num_waiting) == (2, 1)
        return await tasks[1]

    result, runs = run_batches(test)
    assert result == [4]
    assert runs.batches == [(0, [2])]


def test_one_thread_runs_all_batches_and_it_is_not_that_of_the_event_loop():
    async def test(batcher):
        for _ in range(3):
            await batcher.submit([(Double(), 1)])
        return threading.get_ident()

    loop_thread, runs = run_batches(test, max_wait_seconds=0)
    assert len(runs.batches) == 3
    assert len(runs.threads) == 1
    assert loop_thread not in runs.threads


def test_batches_are_reported():
    reported = []

    async def test(batcher):
        await batcher.submit([(Double(), 1), (Double(), 2)])

    run_batches(test, on_batch=lambda *batch: reported.append(batch))
    ((name, size, seconds),) = reported
    assert (name, size) == ("double", 2)
    assert seconds >= 0


def test_a_request_that_waits_when_the_batcher_stops_is_cancelled():
    async def test(batcher):
        task = asyncio.create_task(batcher.submit([(Double(), 1)]))
        await asyncio.sleep(0)
        await batcher.stop()
        with pytest.raises(asyncio.CancelledError):
            await task

    _, runs = run_batches(test, max_wait_seconds=30)
    assert runs.batches == []
