# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf serve` starts, serves at a free port, and ends with its accepted requests answered."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from blip_hf.cli import main
from tests.support.forkserver import start_command
from tests.support.serving import as_files, photos, wait_until


def read(path):
    return path.read_text() if path.is_file() else ""


def test_the_command_serves_and_finishes_accepted_requests_on_sigterm(captioner_folder, matcher_folder, tmp_path):
    options = [
        "--matcher",
        matcher_folder,
        "--port",
        "0",
        "--device",
        "cpu",
        "--num_threads",
        "1",
        "--max_wait_ms",
        "1000",
    ]
    process = start_command(["serve", captioner_folder, *options], tmp_path)
    try:
        wait_until(lambda: process.exitcode is not None or "\n" in read(tmp_path / "stdout"))
        url = re.search(r"at (http://127\.0\.0\.1:\d+), with", read(tmp_path / "stdout"))[1]
        assert httpx2.get(f"{url}/healthz").json()["endpoints"] == ["/caption", "/match", "/features"]
        with ThreadPoolExecutor(1) as threads:
            files = as_files(*photos(2))
            waiting = threads.submit(httpx2.post, f"{url}/caption", files=files, timeout=30)
            wait_until(lambda: "blip_hf_queue_length 2.0" in httpx2.get(f"{url}/metrics").text)
            process.terminate()
            assert httpx2.post(f"{url}/caption", files=files).status_code == 503
            assert len(waiting.result().json()["captions"]) == 2
        process.join(30)
        assert process.exitcode == 0
        assert read(tmp_path / "stderr") == ""
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--port", "70000"], "--port is 70000, expected 0 to 65535."),
        (["--num_threads", "0"], "--num_threads is 0, expected 1 or more."),
        (["--max_queue", "2"], "max_images=16 is more than max_queue=2"),
        (["--host", "192.0.2.1"], "192.0.2.1, port 8000, cannot be used"),
        (["--port", "0"], "nowhere does not exist."),
    ],
)
def test_wrong_options_are_named(capsys, options, reason):
    assert main(["serve", "nowhere", *options]) == 2
    assert reason in capsys.readouterr().err


def test_an_open_host_is_warned_about(capsys):
    assert main(["serve", "nowhere", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "other machines can reach 0.0.0.0, and the server has no authentication" in capsys.readouterr().err
    main(["serve", "nowhere", "--host", "127.0.0.1", "--port", "0"])
    assert "authentication" not in capsys.readouterr().err


def test_the_help_lists_the_limits(capsys):
    assert main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: blip-hf serve CHECKPOINT [options]" in shown
    assert {"--max_batch_size N", "--allow_urls HOST[,HOST...]", "--port N"} <= set(re.findall(r"--\w+ \S+", shown))
