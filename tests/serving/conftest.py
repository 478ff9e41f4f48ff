# SPDX-License-Identifier: BSD-3-Clause
"""The models of the server, and its client."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from starlette.testclient import TestClient

from blip_hf.serving import ServedModels, ServerSettings, create_app
from tests.support.serving import tiny_served_models


@pytest.fixture(scope="session")
def models() -> ServedModels:
    return tiny_served_models()


@pytest.fixture
def start(models: ServedModels) -> Iterator[Callable[..., TestClient]]:
    """Starts a server with limits, and returns its client."""
    with ExitStack() as stack:

        def start(served: ServedModels = models, **limits: object) -> TestClient:
            return stack.enter_context(TestClient(create_app(served, ServerSettings(**limits))))

        yield start


@pytest.fixture
def client(start: Callable[..., TestClient]) -> TestClient:
    return start()
