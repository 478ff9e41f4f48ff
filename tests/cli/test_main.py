# SPDX-License-Identifier: BSD-3-Clause
"""The command line as a whole: help without heavy imports, errors in one line, pipes and encodings."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from blip_hf import __version__
from blip_hf.cli import COMMANDS, load_command, main
from blip_hf.cli.parser import Command, CommandGroup
from blip_hf.cli.stop_signals import stop_signals
from tests.support.paths import ROOT
from tests.support.processes import run_code, run_python


def all_commands():
    """The words of each command, with the task."""
    for name in COMMANDS:
        command = load_command(name)
        tasks = list(command.commands) if isinstance(command, CommandGroup) else []
        yield from [[name, task] for task in tasks] or [[name]]


def test_the_help_of_every_command_imports_nothing_heavy():
    output = run_code(
        f"""
        import sys
        from blip_hf.cli import main
        for words in {list(all_commands())!r}:
            assert main([*words, "--help"]) == 0
        print({{"torch", "transformers", "numpy", "PIL", "datasets", "accelerate"}} & set(sys.modules))
        """
    )
    usages = [line for line in output.splitlines() if line.startswith("usage: ")]
    assert [usage.split()[2 : 2 + len(words)] for usage, words in zip(usages, all_commands(), strict=True)] == list(
        all_commands()
    )
    assert output.splitlines()[-1] == "set()"


def test_the_package_runs_as_a_module():
    assert run_python("-m", "blip_hf", "--version").stdout == f"blip-hf {__version__}\n"


def test_help_names_each_command(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"{name} " in output and purpose in output for name, purpose in COMMANDS.items())


@pytest.mark.parametrize(
    ("argv", "messages"),
    [
        ([], ["blip-hf: error: no command given", "pretrain, finetune"]),
        (["capton"], ["blip-hf: error: capton is not a command", "Did you mean caption?"]),
        (["finetune", "vqqa"], ["blip-hf finetune: error: vqqa is not a command", "Did you mean vqa?"]),
        (["capfilt", "refiltr"], ["Did you mean refilter?", "run, refilter, report"]),
        (["evaluate", "vqa", "--modle", "m"], ["--modle is unknown. Did you mean --model?"]),
        (["caption", "m", "a.png", "--num-beems", "2"], ["--num-beems is unknown. Did you mean --num_beams?"]),
        (["pretrain", "--lerning_rate", "1"], ["--lerning_rate is unknown. Did you mean --learning_rate?"]),
        (["evaluate", "vqa"], ["--model CHECKPOINT and --data SOURCE [SOURCE ...] missing"]),
        (["caption", "m"], ["IMAGE [IMAGE ...] missing"]),
        (["caption", "m", "a.png", "--num_beams", "many"], ["--num_beams: invalid int value: 'many'"]),
        (["caption", "m", "a.png", "--batch_size", "0"], ["--batch_size is 0, expected 1 or more"]),
        (["caption", "m", "a.png", "--format", "xml"], ["--format", "'text', 'jsonl', 'json', 'csv'"]),
        (["caption", "m", "a.png", "--top_p", "0.9"], ["--top_p applies to sampling only. Add --sample"]),
        (["caption", "m", "a.png", "-x"], ["-x is unknown"]),
        (["capfilt", "report", "run", "other"], ["other is one argument too many"]),
        (["completion", "tcsh"], ["'bash', 'zsh', 'fish'"]),
        (["caption", "./nowhere", "a.png"], ["./nowhere does not exist"]),
    ],
)
def test_usage_error_prints_one_line_and_exits_with_2(argv, messages, capsys):
    assert main(argv) == 2
    output, error = capsys.readouterr()
    assert output == ""
    (line,) = error.splitlines()
    assert line.startswith("blip-hf")
    assert all(message in line for message in messages), line


def fail(monkeypatch, error):
    def raise_error(command, argv):
        raise error

    monkeypatch.setattr(importlib.import_module("blip_hf.cli"), "run", raise_error)


@pytest.mark.parametrize(
    "error", [ValueError("size is -1.\n\nPass  more."), FileNotFoundError("size is -1. Pass more.")]
)
def test_debug_shows_the_traceback_of_an_error(error, monkeypatch, capsys):
    fail(monkeypatch, error)
    assert main(["caption"]) == 2
    assert capsys.readouterr().err == "blip-hf caption: error: size is -1. Pass more.\n"
    with pytest.raises(type(error)):
        main(["caption", "--debug"])


def test_an_error_of_the_program_shows_its_traceback(monkeypatch):
    fail(monkeypatch, KeyError("size"))
    with pytest.raises(KeyError):
        main(["caption"])


def test_invalid_configuration_value_prints_one_line(capsys, tmp_path):
    argv = ["--data", "scenes", "--num_scenes", "8", "--image_size", "32", "--queue_size", "-1", "--use_cpu"]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "blip-hf pretrain: error: queue_size is -1, expected 0 (no queue) or more."


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [["caption", "--help"], ["--help"]])
def test_closed_stdout_is_not_an_error(argv, unbuffered):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "blip_hf", *argv]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_broken_pipe_elsewhere_is_an_error(unbuffered):
    code = """
        import blip_hf.cli
        def run(command, argv):
            raise BrokenPipeError("another pipe")
        blip_hf.cli.run = run
        blip_hf.cli.main(["caption"])
        """
    with pytest.raises(AssertionError, match="another pipe"):
        run_code(code, PYTHONUNBUFFERED=unbuffered)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_in_one_line(number, status, monkeypatch, capsys):
    def wait(options):
        with stop_signals():
            os.kill(os.getpid(), number)
            time.sleep(5)

    command = Command(prog="blip-hf env", description="Waits.", options=load_command("env").options, run=wait)
    monkeypatch.setattr("blip_hf.cli.load_command", lambda name: command)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert main(["env"]) == status
    assert capsys.readouterr().err == "blip-hf env: interrupted\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_ignored_signal_stays_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `nohup` and shells do for jobs in the background
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)
