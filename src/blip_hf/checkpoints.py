# SPDX-License-Identifier: BSD-3-Clause
"""Names of checkpoints, and the error for one that does not fit. Imports nothing heavy."""

import re
from pathlib import Path


_MODEL_ID = r"\w[\w.-]*/\w[\w.-]*"


class WrongCheckpointError(ValueError):
    """A checkpoint that does not fit the class that loads it.

    Args:
        problem (`str`):
            What does not fit, in a sentence.
        remedy (`str`):
            What to do in Python.
        model_class (`str`):
            Name of the class that loads it.
    """

    def __init__(self, problem: str, *, remedy: str, model_class: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.model_class = model_class


def require_checkpoint(source: str) -> None:
    """Raises if `source` is neither a folder nor a possible model id, without a request to the Hub.

    A name whose first part is a local folder is taken for a path, not for a model id.

    Example:
        >>> require_checkpoint("Salesforce/blip-vqa-base")
        >>> require_checkpoint("nowhere")
        Traceback (most recent call last):
        ...
        ValueError: nowhere does not exist. Pass a folder with a saved model, or a model id such as owner/name.
    """
    path = Path(source)
    if path.is_dir():
        return
    if path.is_file():
        raise ValueError(
            f"{source} is a file. Pass a folder with a saved model; `blip-hf convert` makes one from an original"
            " checkpoint."
        )
    if not is_model_id(source):
        raise ValueError(
            f"{source} does not exist. Pass a folder with a saved model, or a model id such as owner/name."
        )


def is_model_id(source: str) -> bool:
    """Returns whether a name may be a model id on the Hub: its first part is not a local folder."""
    return re.fullmatch(_MODEL_ID, source) is not None and not Path(source).parent.is_dir()


__all__ = ["WrongCheckpointError", "is_model_id", "require_checkpoint"]
