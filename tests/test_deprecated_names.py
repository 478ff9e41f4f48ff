# SPDX-License-Identifier: BSD-3-Clause
"""Deprecated names work with a warning."""

import pytest

import blip_hf


def test_deprecated_names_return_the_new_objects_and_warn():
    with pytest.warns(FutureWarning, match=r"`blip_hf.BlipTaskTrainer` is deprecated.*Use `blip_hf.BlipTrainer`"):
        deprecated = blip_hf.BlipTaskTrainer
    assert deprecated is blip_hf.BlipTrainer
    assert "BlipTaskTrainer" not in dir(blip_hf)
