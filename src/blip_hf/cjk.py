# SPDX-License-Identifier: BSD-3-Clause
"""Spaces in Chinese and Japanese text, which BERT's tokenizers add around each Han character."""

import re


_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_KANA = "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_PUNCTUATION = "\u3001-\u3003\u3008-\u3011\u3014-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
# Marks that Latin text has too: dashes, quotation marks, ellipsis.
_SHARED_MARKS = "\u2014\u2018\u2019\u201c\u201d\u2026"

_LETTERS = _HAN + _KANA
_SPACES = re.compile(
    f"(?<=[{_LETTERS}{_SHARED_MARKS}]) +(?=[{_LETTERS}])"
    f"|(?<=[{_LETTERS}]) +(?=[{_SHARED_MARKS}])"
    f"| +(?=[{_PUNCTUATION}])|(?<=[{_PUNCTUATION}]) +"
)
_LETTER = re.compile(f"[{_LETTERS}]")
_MARK = re.compile(f"[{_PUNCTUATION}]")


def join_cjk(text: str) -> str:
    """Removes spaces between Chinese or Japanese characters and around their punctuation. Other text is unchanged.

    Example:
        >>> join_cjk("一 只 狗 、 two dogs 在 沙 滩 上 。")
        '一只狗、two dogs 在沙滩上。'
    """
    return _SPACES.sub("", text)


def split_cjk(text: str) -> str:
    """Puts spaces around each Chinese or Japanese character, the words of metrics, and removes their punctuation.

    Example:
        >>> split_cjk("一只狗, two dogs。").split()
        ['一', '只', '狗', ',', 'two', 'dogs']
    """
    return _LETTER.sub(r" \g<0> ", _MARK.sub(" ", text))


__all__ = ["join_cjk", "split_cjk"]
