# SPDX-License-Identifier: BSD-3-Clause
"""Headless Chromium. Playwright from PyPI drives the browser that is installed, and downloads none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@contextmanager
def open_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Containers run tests as root, for which Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
