# SPDX-License-Identifier: BSD-3-Clause
"""The files of `examples/cluster/` are valid, and their commands have options that exist."""

import re
import shlex
import subprocess

import pytest
import yaml

from blip_hf.cli import load_command
from blip_hf.cli.parser import Command, parse
from tests.support.paths import ROOT


FOLDER = ROOT / "examples" / "cluster"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def words_of(path):
    """The words of the command that a file runs."""
    if path.suffix != ".yaml":
        (command,) = re.findall(r"^(?:srun |torchrun ).*", path.read_text().replace("\\\n", " "), re.MULTILINE)
        return shlex.split(command)
    *_, job = yaml.safe_load_all(path.read_text())
    if job["kind"] == "RayJob":
        return shlex.split(job["spec"]["entrypoint"])
    return job["spec"]["template"]["spec"]["containers"][0]["command"]


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_the_command_of_a_file_parses(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    words = words_of(path)
    program = next(name for name in ("blip_hf", "blip-hf") if name in words)
    command, *options = words[words.index(program) + 1 :]
    command = load_command(command)
    if not isinstance(command, Command):
        command, options = command.commands[options[0]], options[1:]
    parsed, *_ = parse(command, options)
    assert path.name.startswith("capfilt") == hasattr(parsed, "engine")
    assert getattr(parsed, "engine", "ray") == "ray"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_valid_syntax(path):
    assert subprocess.run(["bash", "-n", path], check=False, capture_output=True).stderr == b""


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_a_file_says_how_it_is_started(path):
    assert re.search(
        rf": (?:bash|sbatch|kubectl apply -f) examples/cluster/{re.escape(path.name)}$", path.read_text(), re.M
    )
