# SPDX-License-Identifier: BSD-3-Clause
"""The messages that docs/troubleshooting.md explains are those of the package."""

import ast
import re

from tests.support.paths import ROOT


PAGE = ROOT / "docs" / "troubleshooting.md"
VALUE = "\N{NULL}"  # where a message has a value


def templates():
    """Yields each text in the package, with `VALUE` in place of the values of f-strings."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
                yield re.sub(f"{VALUE}+", VALUE, text)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def quoted_messages():
    return [text for _, text in re.findall(r"^(``?)(?!`)(.+)\1$", PAGE.read_text(), re.MULTILINE)]


def test_quoted_messages_are_in_the_source():
    texts = set(templates())
    patterns = {
        message: VALUE.join(map(str, message.split("..."))).strip(VALUE + " ") for message in quoted_messages()
    }
    assert len(patterns) > 40
    assert [message for message, pattern in patterns.items() if not any(pattern in text for text in texts)] == []


def test_each_message_has_a_cause_or_a_remedy():
    for message in quoted_messages():
        after = PAGE.read_text().partition(f"{message}`")[2].lstrip("`\n")
        assert after.startswith(("- Cause: ", "- Do: ")), message
