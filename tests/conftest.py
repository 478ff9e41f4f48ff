# SPDX-License-Identifier: BSD-3-Clause
"""What all tests share: no network, few threads, one seed, and the real photos where they are at hand."""

import os
from pathlib import Path

from tests.support.paths import DATA


# Before any import that reads them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
)

import pytest
import torch


torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    # On by default for convolutions, and so for the patch embedding.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real photos; tests that need it skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real photos: {DATA} is not a folder, set BLIP_HF_DATA to one")
    return DATA
