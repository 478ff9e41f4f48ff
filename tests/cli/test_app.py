# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf app`: its warnings, its errors, and a page that ends on SIGTERM."""

import os
import signal
import sys
import time
from threading import Thread
from urllib.request import urlopen

import pytest

from blip_hf.cli import main
from blip_hf.cli.app import AppOptions, warn_of_visitors
from blip_hf.cli.errors import UsageError
from tests.support.ports import free_port


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({}, ""),
        ({"host": "localhost"}, ""),
        ({"host": "::1"}, ""),
        ({"host": "0.0.0.0"}, "The network of 0.0.0.0 can reach this page, which has no password"),
        ({"host": "my-machine"}, "The network of my-machine can reach this page"),
        ({"share": True}, "The internet can reach this page"),
    ],
)
def test_a_page_that_others_can_reach_has_a_warning(options, warning, capsys):
    warn_of_visitors(AppOptions(**options))
    error = capsys.readouterr().err
    assert warning in error
    assert bool(warning) == bool(error)


@pytest.mark.parametrize("port", [0, 70_000])
def test_a_port_out_of_range_is_an_error(port):
    with pytest.raises(UsageError, match=f"--port is {port}, expected 1 to 65535"):
        AppOptions(port=port)


def test_a_model_that_the_page_has_no_tab_for_is_an_error(tmp_path, capsys):
    assert main(["app", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["app", "--capfilt", str(tmp_path)]) == 2
    assert "is not a CapFilt run with scores" in capsys.readouterr().err


def test_a_missing_gradio_is_an_error_that_names_the_extra(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("blip_hf.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert "The page needs gradio, which is not installed: pip install 'blip_hf[app]'" in capsys.readouterr().err


def test_the_command_serves_a_page_until_it_is_stopped(captioner_folder, capsys):
    port = free_port()
    seen = []

    def visit_and_stop():
        while not (line := capsys.readouterr().out):
            time.sleep(0.05)
        seen.extend((line, urlopen(f"http://127.0.0.1:{port}/").status))
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=visit_and_stop, daemon=True).start()
    assert main(["app", str(captioner_folder), "--port", str(port), "--device", "cpu"]) == 0
    assert seen == [f"The page is at http://127.0.0.1:{port}/ until you press Ctrl-C\n", 200]
