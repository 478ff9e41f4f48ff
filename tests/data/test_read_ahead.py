# SPDX-License-Identifier: BSD-3-Clause
"""Items are read ahead in order, a bounded number of them, and errors come in their place."""

import threading
from itertools import islice

import pytest

from blip_hf.data.read_ahead import read_ahead


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_are_in_order(num_workers):
    # The first items take longest.
    waits = [threading.Event() for _ in range(3)]

    def read(number):
        if number < 3 and num_workers == 3:
            if number:
                waits[number - 1].set()
            if number < 2:
                waits[number].wait(5)
        return number

    assert list(read_ahead(range(20), read, num_workers=num_workers, depth=5)) == list(range(20))


def test_at_most_depth_items_are_read_ahead():
    taken = []
    results = read_ahead((taken.append(number) or number for number in range(100)), int, num_workers=2, depth=4)
    assert list(islice(results, 3)) == [0, 1, 2]
    assert len(taken) == 3 + 4 - 1
    results.close()
    assert len(taken) == 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_is_raised_in_its_place(num_workers):
    def read(number):
        if number == 3:
            raise OSError(5, "a disk failed")
        return number

    results = read_ahead(range(10), read, num_workers=num_workers, depth=4)
    assert list(islice(results, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="a disk failed"):
        next(results)


def test_threads_end_with_the_iterator():
    results = read_ahead(range(100), int, num_workers=2, depth=4)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ValueError, match="num_workers=-1"):
        next(read_ahead([1], int, num_workers=-1, depth=2))
