# SPDX-License-Identifier: BSD-3-Clause
"""The page in headless Chromium, as wide as on a desktop and on a phone. Skipped without Chromium."""

import pytest

from blip_hf.app.models import PageContent
from blip_hf.app.run import serve
from tests.support.chromium import NEEDS_CHROMIUM, open_browser
from tests.support.ports import free_port


pytestmark = NEEDS_CHROMIUM

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
TABS = ["Caption", "Ask", "Match", "Explain", "Search", "CapFilt"]


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(content):
    with serve(content, port=free_port()) as address:
        yield address


class Visitor:
    """A browser window on the page, with what it requested."""

    def __init__(self, browser, address, size="desktop"):
        self.window = browser.new_page(viewport=SIZES[size])
        self.requests = []
        self.window.on("request", lambda request: self.requests.append(request.url))
        self.window.goto(address)

    def open(self, tab):
        found = self.window.get_by_role("tab", name=tab, exact=True)
        self.window.get_by_role("tab", name="Caption").wait_for()
        if not found.count():  # a narrow window moves the last tabs to a menu
            self.window.locator(".overflow-menu > button").click()
            found = self.window.locator(".overflow-dropdown button", has_text=tab)
        found.click()

    @property
    def panel(self):
        return self.window.locator("[role=tabpanel]:visible")

    def upload(self, path):
        self.panel.locator("input[type=file]").set_input_files(path)
        self.panel.get_by_role("button", name="Remove Image").or_(self.panel.get_by_label("Remove")).first.wait_for()

    def write(self, label, text):
        self.panel.get_by_role("textbox", name=label).fill(text)

    def press(self, name):
        self.panel.get_by_role("button", name=name, exact=True).click()

    def rows(self):
        self.panel.locator(".results tbody tr").first.wait_for()
        return [row.locator("td").all_inner_texts() for row in self.panel.locator(".results tbody tr").all()]

    def figures(self):
        self.panel.locator("figure").first.wait_for()
        return self.panel.locator("figure figcaption").all_inner_texts()

    def error(self):
        return self.window.locator(".toast-body.error").first.inner_text()


@pytest.fixture(params=SIZES)
def visitor(request, browser, address):
    visitor = Visitor(browser, address, request.param)
    yield visitor
    visitor.window.close()


def test_every_tab_works_and_fits_the_window(visitor, address, upload):
    visitor.open("Caption")
    visitor.upload(upload)
    visitor.press("Caption")
    ((caption, log_probability, probability),) = visitor.rows()
    assert caption.startswith("a picture of")
    assert float(log_probability) < 0 < float(probability) < 1

    visitor.open("Ask")
    visitor.upload(upload)
    visitor.write("Question", "a b?")
    visitor.press("Ask")
    assert len(visitor.rows()) == 3

    visitor.open("Match")
    visitor.upload(upload)
    visitor.write("Texts", "a b\nc d e")
    visitor.press("Match")
    assert {row[0] for row in visitor.rows()} == {"a b", "c d e"}

    visitor.open("Explain")
    visitor.upload(upload)
    visitor.write("Text", "a b c")
    visitor.press("Explain")
    assert visitor.figures() == ["a", "b", "c"]

    visitor.open("Search")
    visitor.write("Text", "a dog")
    visitor.press("Search")
    assert sorted(text.split()[0] for text in visitor.figures()) == ["a.png", "b", "d"]

    visitor.open("CapFilt")
    assert visitor.rows() == [
        ["web", "4", "2", "50.0%"],
        ["synthetic", "4", "3", "75.0%"],
        ["all", "8", "5", "62.5%"],
    ]
    assert len(visitor.figures()) == 8

    width = visitor.window.viewport_size["width"]
    assert visitor.window.evaluate("document.documentElement.scrollWidth") <= width
    outside = [url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))]
    assert visitor.requests
    assert outside == []


def test_moving_the_threshold_filters_again(browser, address):
    visitor = Visitor(browser, address)
    visitor.open("CapFilt")
    assert visitor.rows()[-1] == ["all", "8", "5", "62.5%"]
    slider = visitor.panel.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    visitor.panel.get_by_text("100.0%").first.wait_for()
    assert visitor.rows()[-1] == ["all", "8", "8", "100.0%"]
    visitor.window.close()


@pytest.mark.parametrize(
    ("content_of_file", "text", "message"),
    [
        (None, "a", "No image is given"),
        (b"nothing", "a", "Cannot read the image broken.png: it is empty or not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a", "Cannot read the image broken.png"),
    ],
)
def test_bad_input_gives_a_message(browser, address, tmp_path, content_of_file, text, message):
    visitor = Visitor(browser, address)
    visitor.open("Match")
    if content_of_file is not None:
        (tmp_path / "broken.png").write_bytes(content_of_file)
        visitor.upload(tmp_path / "broken.png")
    visitor.write("Texts", text)
    visitor.press("Match")
    assert message in visitor.error()
    visitor.window.close()


def test_tabs_without_a_model_name_the_option(browser):
    with serve(PageContent(), port=free_port()) as address:
        visitor = Visitor(browser, address)
        hints = {}
        for tab in ("Caption", "Ask", "Match", "Explain", "CapFilt"):
            visitor.open(tab)
            hints[tab] = visitor.panel.locator("code").inner_text()
        assert visitor.window.get_by_role("tab", name="Search").count() == 0
        visitor.window.close()
    assert hints == {
        "Caption": "blip-hf app CAPTIONER",
        "Ask": "blip-hf app --vqa MODEL",
        "Match": "blip-hf app --matcher MODEL",
        "Explain": "blip-hf app --matcher MODEL",
        "CapFilt": "blip-hf app --capfilt FOLDER",
    }
