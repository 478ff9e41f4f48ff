# SPDX-License-Identifier: BSD-3-Clause
import datasets
import pytest


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory, monkeypatch):
    """Copies of tars and Parquet files go to a temporary cache."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
