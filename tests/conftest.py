# SPDX-License-Identifier: BSD-3-Clause
"""Set-up of all tests: no network, one seed, few threads, and fixtures that several files use."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# Before any import that reads them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
    RAY_AUTH_MODE="disabled",  # whether or not the home folder has a token
    # Workers of pytest-xdist share the cores: one thread each, also in subprocesses.
    **({"OMP_NUM_THREADS": "1"} if "PYTEST_XDIST_WORKER" in os.environ else {}),
)

import pytest
import torch
from transformers import PreTrainedModel

from blip_hf import BlipProcessor
from tests.support.exports import Exports
from tests.support.paths import DATA
from tests.support.ray_cluster import ray_cluster
from tests.support.tiny_models import tiny_capfilt


torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    # On by default for convolutions, such as the patch embedding.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real photos; tests that need it skip if it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not a folder: set BLIP_HF_DATA to a folder of real photos")
    return DATA


@pytest.fixture(scope="session")
def captioner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny random captioner with its processor. Do not write into it."""
    captioner, processor, _, _ = tiny_capfilt()
    return save(captioner, processor, tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="session")
def matcher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny random matcher with its processor. Do not write into it."""
    _, _, matcher, processor = tiny_capfilt()
    return save(matcher, processor, tmp_path_factory.mktemp("matcher"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A Ray cluster of one node with two CPUs."""
    with ray_cluster(num_nodes=1, num_cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Uses one thread, as started processes do: the number of threads changes the last digits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def save(model: PreTrainedModel, processor: BlipProcessor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Exports of tiny models."""
    return Exports(tmp_path_factory.mktemp("exports"))
