# SPDX-License-Identifier: BSD-3-Clause
"""Reads the body of a request: JSON with images in base64, or a multipart form with image files."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_origin

import pydantic_core
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive

from .errors import RequestError
from .operation import OperationRequest
from .settings import ServerSettings


IMAGES = "images"
_MAX_FIELDS = 100
_ACCEPTED_TYPES = "application/json or multipart/form-data"


@dataclass(frozen=True)
class Body:
    """The settings of a request, and its images: encoded bytes, or text that is base64, a `data:` URL or a URL."""

    settings: OperationRequest
    images: list[bytes | str]


async def read_body(request: Request, operation: type[OperationRequest], limits: ServerSettings) -> Body:
    """Reads and validates a body.

    Raises:
        RequestError: 400 for a broken body, 413 for one that is too large, 415 for another type, 422 for wrong settings.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body_bytes:
        raise _too_large(limits)
    request = Request(request.scope, _bounded(request.receive, limits))
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        values, images = await _read_json(request)
    elif content_type == "multipart/form-data":
        values, images = await _read_form(request, operation, limits)
    else:
        raise RequestError(415, f"The content type is {content_type or 'missing'!r}, accepted is {_ACCEPTED_TYPES}.")
    if operation.needs_images and not images:
        raise RequestError(422, f"{IMAGES} is missing. Send at least one image.")
    if len(images) > limits.max_images:
        raise RequestError(413, f"{IMAGES} has {len(images)} entries, at most {limits.max_images} are accepted.")
    _check_lengths(values, limits)
    settings = _validate(operation, values)
    settings.check()
    return Body(settings, images)


def _too_large(limits: ServerSettings) -> RequestError:
    return RequestError(413, f"The request is larger than {limits.max_body_mb} MiB. Send fewer or smaller images.")


def _bounded(receive: Receive, limits: ServerSettings) -> Receive:
    """Stops a body that has no length in its header and exceeds the limit."""
    # FastAPI's `max_body_size` does not tell the client what is accepted.
    total = 0

    async def bounded() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limits.max_body_bytes:
            raise _too_large(limits)
        return message

    return bounded


async def _read_json(request: Request) -> tuple[dict[str, Any], list[bytes | str]]:
    content = await request.body()
    try:
        # In a thread: megabytes of base64 would block other requests.
        values = await asyncio.to_thread(pydantic_core.from_json, content, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"The body is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise RequestError(422, f"The body is a JSON {type(values).__name__}, expected an object.")
    images = values.pop(IMAGES, [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RequestError(422, f"{IMAGES} is not a list of strings. Send a list of images in base64.")
    return values, images


async def _read_form(
    request: Request, operation: type[OperationRequest], limits: ServerSettings
) -> tuple[dict[str, Any], list[bytes | str]]:
    # One file and one text more than accepted, so that `read_body` reports their number.
    max_fields = limits.max_texts + 1 + _MAX_FIELDS
    async with request.form(max_files=limits.max_images + 1, max_fields=max_fields) as form:
        values: dict[str, Any] = {}
        for name in form:
            if name != IMAGES:
                values[name] = _form_value(form, name, operation)
        files = [file for file in form.getlist(IMAGES) if isinstance(file, UploadFile)]
        if len(files) < len(form.getlist(IMAGES)):
            raise RequestError(422, f"{IMAGES} holds text. Send files in a form, or base64 in JSON.")
        return values, [await file.read() for file in files]


def _form_value(form: FormData, name: str, operation: type[OperationRequest]) -> str | list[str]:
    values = [value for value in form.getlist(name) if isinstance(value, str)]
    if len(values) < len(form.getlist(name)):
        raise RequestError(422, f"{name} is a file. Send the files of images as {IMAGES}.")
    if _is_list(operation, name):
        return values
    if len(values) > 1:
        raise RequestError(422, f"{name} occurs {len(values)} times, expected once.")
    return values[0]


def _is_list(operation: type[OperationRequest], name: str) -> bool:
    field = operation.model_fields.get(name)
    hints = () if field is None else (field.annotation, *getattr(field.annotation, "__args__", ()))
    return any(get_origin(hint) is list for hint in hints)


def _check_lengths(values: Mapping[str, Any], limits: ServerSettings) -> None:
    """Bounds the number of entries, each of which may have an error, before they are validated."""
    if len(values) > _MAX_FIELDS:
        raise RequestError(413, f"The body has {len(values)} fields, at most {_MAX_FIELDS} are accepted.")
    for name, value in values.items():
        if isinstance(value, list) and len(value) > limits.max_texts:
            raise RequestError(413, f"{name} has {len(value)} entries, at most {limits.max_texts} are accepted.")


def _validate(operation: type[OperationRequest], values: Mapping[str, Any]) -> OperationRequest:
    try:
        return operation.model_validate(values)
    except ValidationError as error:
        accepted = ", ".join([IMAGES, *operation.model_fields])
        raise RequestError(422, " ".join(_reason(each, accepted) for each in error.errors()[:8])) from error


def _reason(error: Mapping[str, Any], accepted: str) -> str:
    """A sentence about a field: what it is, and what is accepted."""
    name, *indices = error["loc"] or ("",)
    name += "".join(f"[{index}]" for index in indices)
    if error["type"] == "extra_forbidden":
        return f"{name} is unknown. Accepted are {accepted}."
    if error["type"] == "missing":
        return f"{name} is missing."
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    if not name:
        return f"{message}."
    value = str(error["input"])
    shown = value if len(value) <= 40 else f"{value[:40]}..."
    return f"{name}={shown} is not accepted: {message[0].lower()}{message[1:]}."


__all__ = ["IMAGES", "Body", "read_body"]
