# SPDX-License-Identifier: BSD-3-Clause
"""Code in the documentation runs, on small stand-ins for the checkpoints and files that it names."""

import re
import shlex
import shutil

import pytest

from blip_hf.cli import main
from tests.support.documented_files import write_documented_files
from tests.support.paths import ROOT


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"(?:<!-- not run: (.*) -->\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIALS = [path for path in PAGES if path.parent.name == "tutorials"]
# Python that is not run: a comment above the block has the reason.
NOT_RUN = {"distributed": ["needs a Ray cluster, see tests/cli/test_caption_ray.py"]}
# The same code with less to do.
SMALLER = {
    '"cuda"': '"cpu"',
    "{00000..00099}": "{00000..00001}",
    'BlipTrainingArguments("runs/blip")': 'BlipTrainingArguments("runs/blip", max_steps=1)',
    "text_fields=processor.config_token_ids()": "text_fields=processor.config_token_ids(), queue_size=8",
    'output_dir="runs/caption",': 'output_dir="runs/caption", num_train_epochs=1,',
}


def python_blocks(page):
    """Yields each block of Python, and the reason if it is not run."""
    for match in PYTHON.finditer(page.read_text()):
        yield match[2], match[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Do not write into it."""
    folder = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_documented_files(folder)
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """The current folder: a copy of the stand-ins."""
    shutil.copytree(files, tmp_path / "files")
    (tmp_path / "files" / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_python_of_a_page_runs(page, folder):
    for block, reason in python_blocks(page):
        if reason is None:
            for text, smaller in SMALLER.items():
                block = block.replace(text, smaller)
            exec(compile(block, f"{page.name}: {block[:60]}", "exec"), {"__name__": "docs"})


def test_few_blocks_are_not_run():
    reasons = {page.stem: [reason for _, reason in python_blocks(page) if reason] for page in PAGES}
    assert {page: found for page, found in reasons.items() if found} == NOT_RUN
