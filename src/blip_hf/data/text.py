# SPDX-License-Identifier: BSD-3-Clause
"""BLIP's normalisation of captions and questions, as in salesforce/BLIP `data/utils.py`.

Commas, apostrophes, hyphens, slashes and question marks are kept.
"""

import re


_PUNCTUATION = '.!"()*#:;~'
_TO_SPACES = str.maketrans(dict.fromkeys(_PUNCTUATION, " "))
_TO_NOTHING = str.maketrans(dict.fromkeys(_PUNCTUATION))


def pre_caption(text: str, max_words: int = 30) -> str:
    r"""Lower-cases a caption, replaces `. ! " ( ) * # : ; ~` by spaces, merges white space and truncates it to `max_words`.

    Example:
        >>> pre_caption("A dog (brown), running... on the beach!", max_words=5)
        'a dog brown , running'
    """
    text = re.sub(r"\s{2,}", " ", text.lower().translate(_TO_SPACES))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:max_words])


def pre_question(text: str, max_words: int = 50) -> str:
    """Lower-cases a question, deletes the punctuation that [`pre_caption`] replaces, and truncates it to `max_words`.

    Example:
        >>> pre_question("What's on the table (left)?")
        "what's on the table left?"
    """
    return " ".join(text.lower().translate(_TO_NOTHING).rstrip(" ").split(" ")[:max_words])


__all__ = ["pre_caption", "pre_question"]
