# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf demo`: what it checks before it trains."""

import sys

import pytest

from blip_hf.cli import main


@pytest.mark.parametrize("name", ["jinja2", "matplotlib", "rich"])
def test_a_missing_package_of_the_report_is_an_error_before_the_training(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["demo", "--output_dir", str(tmp_path / "demo")]) == 2
    assert f"The demo needs {name}, which is not installed: pip install 'blip_hf[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
