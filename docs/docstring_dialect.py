# SPDX-License-Identifier: BSD-3-Clause
"""Shows docstrings in the dialect of Hugging Face, and the `help` of dataclass fields, in the API reference."""

import ast
import re
import textwrap

import griffe


ARGUMENT = re.compile(r"^( +)(\*{0,2}\w+) \((.*)\):$", re.MULTILINE)
RETURNED = re.compile(r"^ +`[^`]+`(?: of [^:]+)?: ", re.MULTILINE)
LINK = re.compile(r"\[`~?([\w.()]+)`\](?![(\[])")


class HuggingFaceDialect(griffe.Extension):
    """Rewrites docstrings to what Griffe's parser of the Google style expects."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrites one docstring."""
        if obj.is_attribute and obj.docstring is None and (text := field_help(obj.value)):
            obj.docstring = griffe.Docstring(text, parent=obj)
        elif obj.docstring is not None:
            obj.docstring.value = convert(obj.docstring.value, signature(obj))


def signature(obj: griffe.Object) -> set[str]:
    """Returns the names of the parameters of a function or a class."""
    return {parameter.name for parameter in obj.parameters} if obj.is_function or obj.is_class else set()


def convert(docstring: str, parameters: set[str]) -> str:
    """Makes `Example:` a section, types plain words, and links to objects plain code."""

    def argument(match: re.Match[str]) -> str:
        indent, name, kind = match[1], match[2], match[3].replace("`", "").replace(", *optional*", "")
        # The signature shows the default.
        return f"{indent}{name} ({kind.partition(', defaults to ')[0] if name in parameters else kind}):"

    docstring = re.sub(r"^( *)Example:$", r"\1Examples:", LINK.sub(r"`\1`", docstring), flags=re.MULTILINE)
    return RETURNED.sub(lambda match: match[0].replace("`", ""), ARGUMENT.sub(argument, docstring))


def field_help(value: griffe.Expr | str | None) -> str | None:
    """Returns the `help` in `field(metadata={"help": ...})` or `_setting(default, help)`."""
    try:
        call = ast.parse(textwrap.dedent(str(value)), mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(call, ast.Call):
        return None
    if isinstance(call.func, ast.Name) and call.func.id == "_setting":
        return ast.literal_eval(call.args[1])
    entries = [
        entry
        for node in ast.walk(call)
        if isinstance(node, ast.Dict)
        for entry in zip(node.keys, node.values, strict=True)
    ]
    for key, text in entries:
        if isinstance(key, ast.Constant) and key.value == "help":
            return "".join(part.value for part in ast.walk(text) if isinstance(part, ast.Constant))
    return None
