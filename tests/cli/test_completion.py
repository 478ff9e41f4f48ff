# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf completion`: the scripts complete every command and option."""

import shutil
import subprocess

import pytest

from blip_hf.cli import main
from blip_hf.cli.completion import bash_script, entries, fish_script, zsh_script


@pytest.fixture(scope="module")
def bash_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "blip-hf.bash"
    path.write_text(bash_script())
    return path


def complete(bash_file, *words):
    """The completions that bash offers for the last word."""
    code = 'source "$0"; COMP_WORDS=(blip-hf "$@"); COMP_CWORD=$#; _blip_hf; printf "%s\\n" "${COMPREPLY[@]}"'
    result = subprocess.run(["bash", "-c", code, bash_file, *words], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ca"], {"caption", "capfilt"}),
        (["finetune", ""], {"caption", "retrieval", "vqa", "nlvr2", "--help"}),
        (["finetune", "caption", "--lea"], {"--learning_rate", "--learn_temperature"}),
        (["finetune", "caption", "--model", "m", "--queue"], set()),
        (["finetune", "retrieval", "--model", "m", "--queue"], {"--queue_size"}),
        (["capfilt", "refilter", "runs/x", "--by", ""], {"itm", "itc", "posterior"}),
        (["completion", ""], {"bash", "zsh", "fish", "--help"}),
    ],
)
def test_bash_completes_commands_options_and_choices(bash_file, words, offered):
    assert complete(bash_file, *words) == offered


def test_every_shell_gets_every_option():
    scripts = {"bash": bash_script(), "zsh": zsh_script(), "fish": fish_script()}
    for entry in entries():
        for option in entry.options:
            assert option in scripts["bash"]
            assert option in scripts["zsh"]
            assert f"-l {option.removeprefix('--')}" in scripts["fish"]


def test_the_command_prints_the_script(capsys):
    assert main(["completion", "fish"]) == 0
    assert capsys.readouterr().out == fish_script()
