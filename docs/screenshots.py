# SPDX-License-Identifier: BSD-3-Clause
"""Makes the screenshots of docs/app.md from the models of `blip-hf demo`, in headless Chromium.

    python docs/screenshots.py runs/demo runs/clean

`runs/clean` is a CapFilt run. Needs the extra `app`, Playwright, and Chromium (`apt-get install chromium`).
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from blip_hf.app.models import PageContent, find_checkpoints, load_models
from blip_hf.app.run import serve
from blip_hf.data.scenes import Scenes


DOCS = Path(__file__).parent
PORT = 7899


def main(argv: list[str] | None = None) -> None:
    """Serves the page, uses its tabs, and writes `docs/app_*.png`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", help="output folder of blip-hf demo")
    parser.add_argument("capfilt", type=Path, help="output folder of blip-hf capfilt run")
    options = parser.parse_args(argv)
    models = load_models(find_checkpoints(options.demo), device="cpu")
    scene = Scenes(1, start=20_000)[0]  # not in the training set of the demo
    content = PageContent(capfilt_run=options.capfilt, **models)
    with (
        serve(content, port=PORT) as address,
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
    ):
        image = Path(folder, "scene.png")
        scene["image"].resize((256, 256)).save(image)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        desktop = browser.new_page(viewport={"width": 1280, "height": 700})
        desktop.goto(address)
        caption(desktop, image)
        save(desktop, "app_caption.png", height=800)
        explain(desktop, image, scene["caption"])
        save(desktop, "app_explain.png", height=700)
        open_tab(desktop, "CapFilt")
        desktop.locator("figure:visible").first.wait_for()
        save(desktop, "app_capfilt.png", height=760)
        phone = browser.new_page(viewport={"width": 390, "height": 844})
        phone.goto(address)
        explain(phone, image, scene["caption"])
        save(phone, "app_phone.png", height=1100)
        browser.close()


def caption(page: Page, image: Path) -> None:
    """Samples four captions."""
    open_tab(page, "Caption")
    upload(page, image)
    page.get_by_role("radio", name="Sampling").click()
    page.get_by_role("spinbutton", name="Captions").fill("4")
    page.get_by_role("button", name="Caption", exact=True).click()
    page.locator(".results:visible").wait_for()


def explain(page: Page, image: Path, text: str) -> None:
    """Explains each word of a caption."""
    open_tab(page, "Explain")
    upload(page, image)
    page.get_by_role("textbox", name="Text").locator("visible=true").fill(text)
    page.get_by_role("radio", name="Each word of a caption").click()
    page.get_by_role("button", name="Explain", exact=True).click()
    page.locator("figure:visible").first.wait_for()


def open_tab(page: Page, name: str) -> None:
    """Opens a tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def upload(page: Page, image: Path) -> None:
    """Puts an image into the field of the open tab."""
    panel = page.locator("[role=tabpanel]:visible")
    panel.locator("input[type=file]").set_input_files(image)
    panel.locator("img").first.wait_for()


def save(page: Page, name: str, *, height: int) -> None:
    """Writes the top of the page as a PNG file."""
    page.wait_for_timeout(1000)  # animations
    page.screenshot(path=DOCS / name, full_page=True)
    image = Image.open(DOCS / name).convert("RGB")
    image.crop((0, 0, image.width, min(height, image.height))).save(DOCS / name, optimize=True)


if __name__ == "__main__":
    main()
