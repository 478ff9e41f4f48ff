# SPDX-License-Identifier: BSD-3-Clause
"""The documentation site builds without warnings, needs no network, and describes all exported names."""

import re
import runpy

import pytest

import blip_hf
from blip_hf import _HOME_OF
from tests.support.paths import ROOT
from tests.support.processes import run_python


API = ROOT / "docs" / "api"
FIGURES = ROOT / "docs" / "figures"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "mkdocs", "build", "--strict", "--config-file", ROOT / "mkdocs.yml", "--site-dir", folder]
    result = run_python(*command, NO_MKDOCS_2_WARNING="1")
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


def test_pages_load_nothing_from_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    loads = r"<(?:script|img|iframe)[^>]*\bsrc=\"?(?:https?:)?//|<link[^>]*\bhref=\"?(?:https?:)?//"
    assert [page.name for page in pages if re.search(loads, page.read_text())] == []
    assert [page.name for page in site.rglob("*.css") if re.search(r"url\(\"?https?:", page.read_text())] == []


def test_the_search_index_has_pages_and_docstrings(site):
    index = (site / "search" / "search_index.json").read_text()
    assert "The last checkpoint is good." in index  # troubleshooting.md
    assert "Captions images of any form" in index  # the docstring of BlipCaptioner
    assert "Probability mass that nucleus sampling draws from" in index  # the help of a field of CaptionSettings
    assert "[~" not in index  # links of docstrings


def test_linked_files_of_the_repository_are_part_of_the_site(site):
    assert (site / "repository" / "examples" / "finetune_caption.py").is_file()
    assert "vqa.yaml" in (site / "repository" / "examples" / "recipes" / "index.html").read_text()


def test_the_reference_has_each_exported_name_once():
    documented = [name for page in API.glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    assert sorted(documented) == sorted(f"blip_hf.{home}.{name}" for name, home in _HOME_OF.items())
    assert set(_HOME_OF) == set(blip_hf.__all__) - {"__version__"}


@pytest.mark.parametrize("name", ["text_roles.svg", "image_memory.svg", "capfilt.svg"])
def test_figures_are_those_of_their_script(name):
    figures = runpy.run_path(str(FIGURES / "draw.py"))["FIGURES"]
    assert (FIGURES / name).read_text() == figures[name]()
