# SPDX-License-Identifier: BSD-3-Clause
"""Code in the documentation runs, on small stand-ins for the checkpoints and files that it names."""

import inspect
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from torch.testing import assert_close
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.blip import modeling_blip

from blip_hf.cli import main
from blip_hf.image_utils import open_image
from tests.support.documented_files import write_documented_files
from tests.support.paths import ROOT
from tests.support.tiny_models import SUMMATION_TOLERANCE


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"(?:<!-- not run: (.*) -->\n)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text() and page.parent.name != "tutorials"]
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIALS = [path for path in PAGES if path.parent.name == "tutorials"]
# Python that is not run: a comment above the block has the reason.
NOT_RUN = {"docs/distributed": ["needs a Ray cluster, see tests/cli/test_caption_ray.py"]}
# Commands that take minutes or do not end; test_docs.py parses them.
LONG_COMMANDS = {"demo", "plan", "serve"}
# The same code with less to do.
SMALLER = {
    '"cuda"': '"cpu"',
    "{00000..00099}": "{00000..00001}",
    'BlipTrainingArguments("runs/blip")': 'BlipTrainingArguments("runs/blip", max_steps=1)',
    "cross_attentions[-4]": "cross_attentions[-1]",  # of two layers
    "Scenes(200": "Scenes(8",
    "Scenes(300": "Scenes(20",
    "Scenes(2_000": "Scenes(40",
    "text_fields=processor.config_token_ids()": "text_fields=processor.config_token_ids(), queue_size=8",
    'output_dir="runs/caption",': 'output_dir="runs/caption", num_train_epochs=1,',
}


def page_name(page):
    return page.relative_to(ROOT).with_suffix("").as_posix()


def python_blocks(page):
    """Yields each block of Python, and the reason if it is not run."""
    for match in PYTHON.finditer(page.read_text()):
        yield match[2], match[1]


@pytest.fixture(autouse=True)
def _registrations(monkeypatch):
    """Forgets the classes that documented code registers, so that other tests see those of transformers."""
    autos = [value for value in vars(modeling_auto).values() if isinstance(value, type)]
    mappings = [getattr(auto, "_model_mapping", None) for auto in autos]
    for mapping in (CONFIG_MAPPING, PROCESSOR_MAPPING, IMAGE_PROCESSOR_MAPPING, *mappings):
        if mapping is None:
            continue
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))


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
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # without Java, which METEOR waits seconds for
    return tmp_path / "files"


def run_block(block):
    for text, smaller in SMALLER.items():
        block = block.replace(text, smaller)
    exec(block, {})


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_name)
def test_python_of_a_page_runs(page, folder):
    for block, reason in python_blocks(page):
        if reason is None:
            run_block(block)


def test_few_blocks_are_not_run():
    reasons = {page_name(page): [reason for _, reason in python_blocks(page) if reason] for page in PAGES}
    assert {page: found for page, found in reasons.items() if found} == NOT_RUN


def commands_of(page):
    """Returns the words of each blip-hf command in the shell blocks of a page."""
    lines = [line for block in SHELL.findall(page.read_text()) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("blip-hf ")]


@pytest.mark.parametrize("page", TUTORIALS, ids=page_name)
def test_commands_of_a_tutorial_run(page, folder, capsys):
    for block, _ in python_blocks(page):
        run_block(block)
    for words in commands_of(page):
        if words[0] in LONG_COMMANDS:
            continue
        trains = words[0] in ("pretrain", "finetune") and "--dry_run" not in words
        main([*words, "--max_steps", "2"] if trains else words)


# ---- Migration


def rows_of_migration(title):
    """Yields the code of each row of a table: the old and the new line."""
    section = (ROOT / "docs" / "migration.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE):
        yield [re.match(r"`(.*?)`", cell)[1] for cell in row.split(" | ")]


def run_line(line, names):
    if line.startswith("blip-hf convert"):
        main(shlex.split(line)[1:])
    elif not line.startswith(("blip-hf", "torchrun", "python ")):  # test_docs.py parses these
        exec(line, names)


@pytest.mark.parametrize("title", ["From transformers", "From LAVIS", "From salesforce/BLIP"])
def test_new_lines_of_migration_run(title, folder):
    names = {"image": open_image("1.jpg"), "texts": ["a dog on a beach", "two boats"]}
    for _, new in rows_of_migration(title):
        run_line(new, names)


def test_old_and_new_lines_of_transformers_give_the_same(folder):
    results = []
    for column in (0, 1):
        names = {"image": open_image("1.jpg"), "texts": ["a dog on a beach", "two boats"]}
        for row in rows_of_migration("From transformers"):
            if "Auto" not in row[column]:
                exec(row[column], names)
        results.append({name: names[name].detach() for name in ("itm", "cosines", "tokens")})
    old, new = results
    assert_close(new["itm"], old["itm"], **SUMMATION_TOLERANCE)
    assert_close(new["cosines"].flatten(), old["cosines"][0].flatten(), **SUMMATION_TOLERANCE)


def test_transformers_lacks_what_the_comparison_says():
    source = inspect.getsource(modeling_blip)
    assert re.findall(r"^class (BlipFor\w+)\(BlipPreTrainedModel", source, re.MULTILINE) == [
        "BlipForConditionalGeneration",
        "BlipForQuestionAnswering",
        "BlipForImageTextRetrieval",
    ]
    assert not modeling_blip.BlipPreTrainedModel._supports_sdpa
    assert not modeling_blip.BlipPreTrainedModel._supports_flash_attn
    assert "rank" not in source
