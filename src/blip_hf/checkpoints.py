# SPDX-License-Identifier: BSD-3-Clause
"""Names of checkpoints, and the error for one that does not fit. Imports nothing heavy."""

import json
import os
import re
from pathlib import Path


EXPORT_FILE = "export.json"
"""The file that makes a folder one of an exported model."""
# By the architecture in `config.json`.
_HEADS = {
    "BlipForConditionalGeneration": "captioner",
    "BlipForImageTextRetrieval": "matcher",
    "BlipForRetrievalTraining": "matcher",
    "BlipForQuestionAnswering": "vqa",
}
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


def is_export(source: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an exported model."""
    return isinstance(source, (str, os.PathLike)) and Path(source, EXPORT_FILE).is_file()


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


def head_of(source: str | os.PathLike[str]) -> str:
    """What a checkpoint is loaded as, by the architecture in its configuration: captioner, matcher or vqa.

    Raises:
        ValueError: If it is none of them.
    """
    from transformers.utils import CONFIG_NAME, cached_file

    require_checkpoint(str(source))
    path = str(cached_file(source, CONFIG_NAME))  # raises if there is none
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or ["model without architecture"])[0]
    if architecture not in _HEADS:
        raise ValueError(f"{source} is a {architecture}. Pass a checkpoint of {', '.join(_HEADS)}.")
    return _HEADS[architecture]


__all__ = ["EXPORT_FILE", "WrongCheckpointError", "head_of", "is_export", "is_model_id", "require_checkpoint"]
