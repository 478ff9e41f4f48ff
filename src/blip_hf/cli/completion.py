# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf completion`: completion scripts for shells, generated from the parsers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .parser import Command, CommandGroup, build_parser


@dataclass
class CompletionOptions:
    """What `blip-hf completion` takes."""

    shell: Literal["bash", "zsh", "fish"] = field(
        metadata={
            "help": "Shell to complete in: `source <(blip-hf completion bash)` in ~/.bashrc, the same for zsh in"
            " ~/.zshrc, `blip-hf completion fish | source` in ~/.config/fish/config.fish",
            "positional": True,
        }
    )


@dataclass(frozen=True)
class Entry:
    """A command with the words that may follow it: commands of its own, or options with their choices."""

    words: tuple[str, ...]
    commands: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    choices: tuple[tuple[str, tuple[str, ...]], ...] = ()


def entries() -> Iterator[Entry]:
    """Every command of `blip-hf`."""
    from . import COMMANDS, load_command

    yield Entry((), commands=tuple(COMMANDS), options=("--help", "--version"))
    for name in COMMANDS:
        command = load_command(name)
        if isinstance(command, CommandGroup):
            yield Entry((name,), commands=tuple(command.commands), options=("--help",))
            for task, task_command in command.commands.items():
                yield _entry((name, task), task_command)
        else:
            yield _entry((name,), command)


def _entry(words: tuple[str, ...], command: Command) -> Entry:
    parser = build_parser(command)
    own_help = ("--help",) if command.trainer_arguments is None else ("--help", "--help_all")
    choices = {name: option_type.choices for name, option_type in parser.option_types.items() if option_type.choices}
    positionals = [name for name, option in parser.fields.items() if option.metadata.get("positional")]
    free = tuple(choice for name in positionals for choice in choices.get(name, ()))
    named = [name for name in parser.fields if name not in positionals]
    return Entry(
        words,
        commands=free,
        options=(*(f"--{name}" for name in named), *own_help),
        choices=tuple((f"--{name}", choices[name]) for name in named if name in choices),
    )


def bash_script() -> str:
    """A script for bash; zsh reads it through `bashcompinit`."""
    cases = []
    for entry in entries():
        lines = [f'    "{" ".join(entry.words)}")']
        if entry.choices:
            lines += ['      case "$previous" in']
            lines += [f'        {name}) candidates="{" ".join(values)}"; return;;' for name, values in entry.choices]
            lines += ["      esac"]
        lines += [f'      candidates="{" ".join((*entry.commands, *entry.options))}";;']
        cases += lines
    return "\n".join(
        [
            "_blip_hf_words() {",
            '  case "$command" in',
            *cases,
            "  esac",
            "}",
            "_blip_hf() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="" candidates="" word',
            '  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
            '    [[ "$word" == -* ]] && break',
            f'    case " {" ".join(sorted(_paths()))} " in',
            '      *" ${command:+${command// /.}.}$word "*) command="${command:+$command }$word";;',
            "      *) break;;",
            "    esac",
            "  done",
            "  _blip_hf_words",
            '  COMPREPLY=($(compgen -W "$candidates" -- "$current"))',
            "}",
            "complete -o default -F _blip_hf blip-hf",
            "",
        ]
    )


def _paths() -> list[str]:
    return [".".join(entry.words) for entry in entries() if entry.words]


def zsh_script() -> str:
    """A script for zsh."""
    return f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{bash_script()}"


_FISH_CONDITIONS = """function __blip_hf_words
    set -l words (commandline -opc)
    string join " " -- $words[2..-1]
end
function __blip_hf_is
    test (__blip_hf_words) = "$argv"
end
function __blip_hf_in
    string match -q -- "$argv *" (__blip_hf_words)" "
end
"""


def fish_script() -> str:
    """A script for fish."""
    lines = [_FISH_CONDITIONS, "complete -c blip-hf -l version -n '__blip_hf_is \"\"'"]
    for entry in entries():
        command = " ".join(entry.words)
        if entry.commands:
            lines.append(f"complete -c blip-hf -n '__blip_hf_is \"{command}\"' -a '{' '.join(entry.commands)}'")
        choices = dict(entry.choices)
        for option in entry.options if command else ():
            values = f" -x -a '{' '.join(choices[option])}'" if option in choices else ""
            lines.append(f"complete -c blip-hf -n '__blip_hf_in {command}' -l {option.removeprefix('--')}{values}")
    return "\n".join([*lines, ""])


def _run(options: CompletionOptions) -> None:
    print({"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[options.shell](), end="")


COMMAND = Command(
    prog="blip-hf completion",
    description="Prints a script that completes commands and options in a shell.",
    options=CompletionOptions,
    run=_run,
)

__all__ = ["COMMAND", "CompletionOptions", "Entry", "bash_script", "entries", "fish_script", "zsh_script"]
