# SPDX-License-Identifier: BSD-3-Clause
"""Limits that make no sense are refused at the start."""

import pytest

from blip_hf.serving import ServerSettings


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0, expected 1 or more."),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is nan, expected 0 or more."),
        ({"request_timeout": 0}, "request_timeout is 0, expected more than 0 seconds."),
        ({"max_queue": 4}, "max_images=16 is more than max_queue=4"),
    ],
)
def test_wrong_limits_are_refused(limits, reason):
    with pytest.raises(ValueError, match=reason):
        ServerSettings(**limits)
