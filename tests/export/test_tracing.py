# SPDX-License-Identifier: BSD-3-Clause
"""What is silenced while a graph is traced."""

from transformers.utils import logging

from blip_hf.export.tracing import tracing


def test_warnings_of_transformers_are_silenced_for_the_trace_only():
    verbosity = logging.get_verbosity()
    with tracing():
        assert logging.get_verbosity() == logging.ERROR
    assert logging.get_verbosity() == verbosity != logging.ERROR
