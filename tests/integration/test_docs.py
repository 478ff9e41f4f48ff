# SPDX-License-Identifier: BSD-3-Clause
"""Everything that the documentation names exists: files, headings, commands, options and imports."""

import ast
import importlib
import pkgutil
import re
import shlex

import pytest
import yaml
from PIL import Image

from blip_hf.bootstrap.config import LoopSettings
from blip_hf.cli import bootstrap, capfilt, evaluate, finetune, pretrain
from blip_hf.cli.parser import build_parser, parse
from tests.support.paths import ROOT
from tests.support.twins import tiny_capfilt


PAGES = [path for path in sorted(ROOT.glob("*.md")) if path.stem != "CHANGELOG"] + sorted((ROOT / "docs").glob("*.md"))
FOLDERS = "benchmarks|docs|examples|src|tests"
LAUNCHERS = ("torchrun", "accelerate")
TASK_COMMANDS = {"finetune": finetune.COMMANDS, "evaluate": evaluate.COMMANDS}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def shell_lines(block):
    """Yields the lines of a shell block, with the variables that it sets filled in."""
    values = {}
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda name: values.get(name[1], name[0]), line)
        if assignment := re.fullmatch(r'(\w+)="(.*)"', line):
            values[assignment[1]] = assignment[2]
        else:
            yield line


def commands(program):
    """Returns the words after `program` of each command line in a shell block, without comments."""
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in shell_lines(block)]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


def anchors(page):
    """Returns the anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_have_targets(page):
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_paths_in_backticks_exist():
    """Also holds the table of CONTRIBUTING that says where to find what."""
    pattern = rf"`((?:{FOLDERS})/[^`\s<]*)`"
    named = {(page.name, name) for page in PAGES for name in re.findall(pattern, page.read_text())}
    assert len(named) > 20
    # `tests/test_x.py::test_y` names a test of a file, and `*.yaml` several files.
    assert sorted((page, name) for page, name in named if not any(ROOT.glob(name.partition("::")[0]))) == []


def test_modules_in_backticks_exist():
    pattern = r"`(blip_hf(?:\.\w+)+)(?:\(\))?`"
    named = {(page.name, name) for page in PAGES for name in re.findall(pattern, page.read_text())}
    assert named
    assert sorted((page, name) for page, name in named if not is_importable(name)) == []


def is_importable(name):
    """Tells whether a dotted name is a module or an attribute of one."""
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def test_commands_of_tasks_parse(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # recipes are named from here
    found = set()
    for command, task, *arguments in (words for words in commands("blip-hf") if words[0] in TASK_COMMANDS):
        use_cpu = ["--use_cpu"] if command == "finetune" else []
        if "--help" not in arguments:
            parse(TASK_COMMANDS[command][task], [*arguments, *use_cpu, "--overwrite"])
        found.add((command, task))
    assert found == {(command, task) for command, tasks in TASK_COMMANDS.items() for task in tasks}


def test_commands_of_pre_training_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [words[1:] for words in commands("blip-hf") if words[0] == "pretrain"]
    assert found
    for arguments in found:
        if not {"--help", "--help_all"} & set(arguments):
            parse(pretrain.COMMAND, [*arguments, "--use_cpu", "--overwrite"])


def test_commands_of_capfilt_parse(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no output exists
    asked = []
    launched = [words[words.index("blip_hf") + 1 :] for name in LAUNCHERS for words in commands(name)]
    assert launched
    for words in [*commands("blip-hf"), *launched]:
        if words[0] == "capfilt":
            asked.append((words[1], *parse(capfilt.COMMANDS[words[1]], words[2:])))
    for task, options in asked:
        assert task == "report" or options.rule().sources
    assert {task for task, _ in asked} == set(capfilt.COMMANDS)


def test_commands_and_settings_of_the_loop_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = [parse(bootstrap.COMMAND, words[1:])[0] for words in commands("blip-hf") if words[0] == "bootstrap"]
    assert {options.config for options in parsed} > {None}
    assert all(options.config is None or options.config.is_file() for options in parsed)
    (settings,) = blocks(ROOT / "docs" / "capfilt.md", "yaml")
    LoopSettings.from_mapping({**yaml.safe_load(settings), "device": "cpu"}).check()


def test_options_that_the_page_of_capfilt_names_exist():
    text = (ROOT / "docs" / "capfilt.md").read_text()
    commands_of_page = [*capfilt.COMMANDS.values(), pretrain.COMMAND]
    known = {
        flag
        for command in commands_of_page
        for action in build_parser(command)._actions
        for flag in action.option_strings
    }
    assert sorted(set(re.findall(r"`(--\w+)", text)) - known - {"--config", "--max_restarts"}) == []


def test_options_that_the_page_of_tasks_names_exist():
    named = set(re.findall(r"`--(\w+)", (ROOT / "docs" / "tasks.md").read_text()))
    of_tasks = [*finetune.COMMANDS.values(), *evaluate.COMMANDS.values(), pretrain.COMMAND]
    actions = [action for command in of_tasks for action in build_parser(command)._actions]
    known = {flag.removeprefix("--") for action in actions for flag in action.option_strings}
    of_help_and_examples = {"config", "help", "help_all", "tiny"}
    assert sorted(named - known - of_help_and_examples) == []


def test_scripts_in_commands_exist():
    named = {words[0] for words in commands("python") if words}
    assert {name for name in named if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_of_pages_parses_and_its_imports_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("blip_hf"):
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_python_of_the_readme_that_loads_checkpoints_runs(tmp_path, monkeypatch, capsys):
    captioner, processor, matcher, _ = tiny_capfilt()
    models = {
        "runs/demo/captioner": captioner,
        "Salesforce/blip-image-captioning-base": captioner,
        "Salesforce/blip-itm-base-coco": matcher,
    }
    monkeypatch.chdir(tmp_path)
    for name, model in models.items():
        model.save_pretrained(name)
        processor.save_pretrained(name)
    for number in (1, 2):
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(f"{number}.jpg")
    used = [block for block in blocks(ROOT / "README.md", "python") if any(f'"{name}"' in block for name in models)]
    assert {name for name in models if any(name in block for block in used)} == set(models)
    for block in used:
        exec(block.replace('"cuda"', '"cpu"'), {})
    assert "tensor(" in capsys.readouterr().out
