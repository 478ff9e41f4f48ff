# SPDX-License-Identifier: BSD-3-Clause
"""A tiny retrieval model with its processor."""

import pytest

from blip_hf import BlipForImageTextRetrieval, BlipProcessor
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


@pytest.fixture(scope="module")
def processor() -> BlipProcessor:
    return make_processor()


@pytest.fixture(scope="module")
def model(processor: BlipProcessor) -> BlipForImageTextRetrieval:
    return tiny_model_for(BlipForImageTextRetrieval, processor)
