# SPDX-License-Identifier: BSD-3-Clause
"""What the four endpoints share: a request is validated, gives jobs for the batcher, and makes a response of the results."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, StringConstraints

from ..data.text import pre_caption
from .batcher import Job
from .errors import RequestError


# Longer texts are truncated by the tokenizer to at most 40 tokens anyway.
Text = Annotated[str, StringConstraints(max_length=1000)]


class OperationRequest(BaseModel):
    """The settings of a request, without its images. The names are those of the Python functions."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    head: ClassVar[str]
    """The model that the endpoint needs."""
    needs_images: ClassVar[bool] = True

    def check(self) -> None:
        """Raises a `RequestError` for texts without words."""

    def jobs(self, images: Sequence[Image.Image]) -> Sequence[tuple[Job, Any]]:
        """Pairs of a job and its input."""
        raise NotImplementedError

    def response(self, results: Sequence[Any]) -> "OperationResponse":
        """The response for the results of the jobs, in order."""
        raise NotImplementedError


class OperationResponse(BaseModel):
    """A response. Numbers that are NaN or infinite are a `ValidationError`."""

    model_config = ConfigDict(allow_inf_nan=False)


def check_texts(texts: Sequence[str]) -> None:
    """Raises if a text has no words."""
    for index, text in enumerate(texts):
        if not pre_caption(text).strip():
            raise RequestError(422, f"texts[{index}] is {text!r}, expected a text with words.")


__all__ = ["OperationRequest", "OperationResponse", "Text", "check_texts"]
