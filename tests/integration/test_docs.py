# SPDX-License-Identifier: BSD-3-Clause
"""Files, headings, commands, options and imports in the documentation exist."""

import ast
import importlib
import pkgutil
import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from blip_hf.bootstrap.config import LoopSettings
from blip_hf.cli import COMMANDS, load_command
from blip_hf.cli.parser import Command, build_parser, choose, parse
from tests.support.paths import ROOT


PAGES = [path for path in sorted(ROOT.glob("*.md")) if path.stem != "CHANGELOG"] + sorted(
    (ROOT / "docs").rglob("*.md")
)
FOLDERS = "benchmarks|docs|examples|src|tests"
LAUNCHERS = ("torchrun", "accelerate")
HELP_OPTIONS = {"help", "help_all", "debug"}
# Options of the examples, torchrun and other tools.
OPTIONS_OF_OTHERS = {"tiny", "max_restarts"}


# Tables of benchmarks, which write them from the results of their runs.
RESULT_TABLES = {
    "momentum_scenes": "short_runs",
    "recipes_scenes": "short_runs",
    **dict.fromkeys(("photos_keys", "photos_retrieval", "photos_captions", "photos_samples"), "flickr8k"),
    "posterior_scenes": "posterior",
    "posterior_photos": "posterior",
    "filter_scenes": "posterior",
}


def page_name(page):
    return page.relative_to(ROOT).with_suffix("").as_posix()


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


def command_lines(program):
    """Returns the words after `program` of each command line in a shell block, without comments and pipes."""
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in shell_lines(block)]
    words = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]
    return [list(takewhile(lambda word: word not in ("|", ">", "&&"), line)) for line in words]


def find_command(words):
    """Returns the command that a command line names, and the words after its name."""
    command = load_command(words[0])
    if isinstance(command, Command):
        return command, words[1:]
    return choose(words[1], command.commands, command.prog), words[2:]


def parse_command(words):
    """Parses a command line without running it, and returns the name of its command."""
    command, options = find_command(words)
    assert [word for word in options if word.endswith(".yaml") and not Path(word).is_file()] == []
    if not {f"--{name}" for name in HELP_OPTIONS} & set(options):
        parse(command, [*options, "--use_cpu"] if command.trainer_arguments else options)
    return command.prog


def all_commands():
    for name in COMMANDS:
        command = load_command(name)
        yield from [command] if isinstance(command, Command) else command.commands.values()


def options_of(command):
    return set(build_parser(command).fields)


def anchors(page):
    """Returns the anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_have_targets(page):
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_paths_in_backticks_exist():
    """Covers the table of locations in CONTRIBUTING too."""
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
    """Returns whether a dotted name is a module or an attribute of one."""
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def test_commands_in_shell_blocks_parse(monkeypatch, tmp_path):
    # In an empty folder, so that no output exists; recipes are named from the root.
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    launched = [words[words.index("blip_hf") + 1 :] for name in LAUNCHERS for words in command_lines(name)]
    assert launched
    parsed = {parse_command(words) for words in [*command_lines("blip-hf"), *launched]}
    undocumented = {command.prog for command in all_commands()} - parsed
    assert undocumented == set()


def test_rules_of_capfilt_commands_are_valid(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words in command_lines("blip-hf"):
        if words[:2] in (["capfilt", "run"], ["capfilt", "refilter"]):
            command, options = find_command(words)
            (parsed,) = parse(command, options)
            assert parsed.rule().sources


def test_new_commands_of_the_migration_parse(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    text = (ROOT / "docs" / "migration.md").read_text()
    commands = re.findall(r"\| `((?:blip-hf|torchrun) [^`]+)`[^|]*\|$", text, re.MULTILINE)
    assert len(commands) > 10
    for words in map(shlex.split, commands):
        parse_command(words[words.index("blip_hf" if words[0] == "torchrun" else "blip-hf") + 1 :])


def test_commands_in_text_have_known_options():
    spans = {span for page in PAGES for span in re.findall(r"`blip-hf ([^`]+)`", page.read_text())}
    assert spans
    for words in map(shlex.split, spans):
        given = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
        command = load_command(words[0]) if words[0] in COMMANDS else None
        assert command is not None or given <= {"version", "help"}, words
        if given - HELP_OPTIONS:
            assert given - HELP_OPTIONS - options_of(find_command(words)[0]) == set(), words


def test_options_in_backticks_exist():
    named = {(page.name, name) for page in PAGES for name in re.findall(r"`--(\w+)", page.read_text())}
    known = {name for command in all_commands() for name in options_of(command)} | HELP_OPTIONS | OPTIONS_OF_OTHERS
    assert named
    assert sorted((page, name) for page, name in named if name not in known) == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_of_a_recipe_parses(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    (line,) = re.findall(r"blip-hf (.* --config .*)", path.read_text().partition("\n")[0])
    assert path.name in line
    parse_command(shlex.split(line))


def test_settings_of_the_loop_in_its_page_are_valid():
    (settings,) = blocks(ROOT / "docs" / "capfilt.md", "yaml")
    LoopSettings.from_mapping({**yaml.safe_load(settings), "device": "cpu"}).check()


def test_lines_of_shell_blocks_start_with_known_programs():
    lines = [
        line
        for page in PAGES
        for name in ("bash", "sh")
        for block in blocks(page, name)
        for line in shell_lines(block)
    ]
    # Their commands are parsed or run by a test, except those of other projects.
    tested = {"blip-hf", "make", "python", *LAUNCHERS}
    others = {"#", "curl", "git", "pip", "pre-commit", "pytest", "ray"}
    assert {line.split()[0] for line in lines if line.strip() and not line.startswith(" ")} == tested | others


def test_make_targets_exist():
    targets = {words[0] for words in command_lines("make")} | {
        name for page in PAGES for name in re.findall(r"`make (\w+)`", page.read_text())
    }
    makefile = (ROOT / "Makefile").read_text()
    assert "docs" in targets
    assert [name for name in targets if f"\n{name}:" not in makefile] == []


def test_scripts_in_commands_exist():
    named = {words[0] for words in command_lines("python") if words}
    assert {name for name in named if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_of_pages_parses_and_its_imports_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("blip_hf"):
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("table", RESULT_TABLES)
def test_a_table_of_results_is_that_of_its_benchmark(table):
    lines = (ROOT / "benchmarks" / "results" / f"{table}.md").read_text()
    assert lines in (ROOT / "docs" / f"{RESULT_TABLES[table]}.md").read_text()
