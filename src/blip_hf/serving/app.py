# SPDX-License-Identifier: BSD-3-Clause
"""The FastAPI application: its endpoints, their documentation, health and metrics."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from .ask import AskRequest, AskResponse
from .body import IMAGES
from .caption import CaptionRequest, CaptionResponse
from .errors import RequestError
from .features import FeaturesRequest, FeaturesResponse
from .match import MatchRequest, MatchResponse
from .metrics import CountRequests
from .models import ServedModels
from .operation import OperationRequest
from .service import Service
from .settings import ServerSettings


_ENDPOINTS: dict[str, tuple[str, type[OperationRequest], type[BaseModel]]] = {
    "/caption": ("Captions images", CaptionRequest, CaptionResponse),
    "/match": ("Compares images with texts", MatchRequest, MatchResponse),
    "/ask": ("Answers a question about images", AskRequest, AskResponse),
    "/features": ("Encodes images and texts", FeaturesRequest, FeaturesResponse),
}
_ERRORS = {
    400: "The body is broken",
    413: "The body, an image or the number of entries is too large",
    415: "The content type is neither JSON nor a multipart form",
    422: "A setting is not accepted, or an image cannot be read; `image_index` names it",
    429: "The queue is full; `Retry-After` says when to retry",
    500: "The model failed",
    501: "The server has no model for this endpoint; `detail` names the option",
    503: "The server is stopping",
    504: "The request took too long",
}


class ErrorResponse(BaseModel):
    """Why a request failed."""

    detail: str
    image_index: int | None = None


class Health(BaseModel):
    """Whether the server takes requests, and the endpoints that it has models for."""

    ready: bool
    endpoints: list[str]


def create_app(models: ServedModels, settings: ServerSettings | None = None) -> FastAPI:
    """Returns the server as an ASGI application, for `blip-hf serve`, uvicorn or another application.

    Args:
        models (`ServedModels`):
            The models. No other code may use them while the application runs.
        settings (`ServerSettings`, *optional*):
            The limits.

    Returns:
        `FastAPI`: The application. `app.state.service.stop()` refuses new requests with 503.

    Example:
        >>> models = ServedModels.from_pretrained("path/to/checkpoint")  # doctest: +SKIP
        >>> app = create_app(models, ServerSettings(max_batch_size=16))  # doctest: +SKIP
    """
    service = Service(models, settings or ServerSettings())
    app = FastAPI(
        title="blip_hf",
        version=__version__,
        description="Captions, image-text matching, question answering and features of BLIP.",
        lifespan=service.lifespan,
    )
    app.state.service = service
    app.add_middleware(CountRequests, metrics=service.metrics, endpoints=[*_ENDPOINTS, "/healthz", "/metrics"])
    app.add_exception_handler(RequestError, _error_response)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "model": ErrorResponse} for status, text in _ERRORS.items()
    }
    for path, (summary, operation, response) in _ENDPOINTS.items():
        app.add_api_route(
            path,
            _handler(service, operation),
            methods=["POST"],
            summary=summary,
            description=operation.__doc__,
            response_model=response,
            response_model_exclude_none=True,
            responses=responses,
            openapi_extra={"requestBody": _request_body(operation)},
            operation_id=path.strip("/"),
        )
    _add_health(app, service)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the server takes requests", response_model=Health)
    async def healthz(response: Response) -> Health:
        response.status_code = 503 if service.is_stopping else 200
        served = [path for path, (_, operation, _) in _ENDPOINTS.items() if getattr(service.models, operation.head)]
        return Health(ready=not service.is_stopping, endpoints=served)

    @app.get("/healthz/live", summary="Whether the process responds")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/metrics", summary="Metrics in the format of Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _handler(service: Service, operation: type[OperationRequest]) -> Callable[[Request], Awaitable[BaseModel]]:
    async def handle(request: Request) -> BaseModel:
        return await service.respond(request, operation)

    return handle


async def _error_response(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return JSONResponse(error.content(), error.status, headers=error.headers)


def _request_body(operation: type[OperationRequest]) -> dict[str, Any]:
    """The two forms of a body, for the documentation."""
    schema = operation.model_json_schema()
    text = {"type": "string", "description": "base64, a data: URL, or an http(s) URL if the server allows its host"}
    content = {}
    for media_type, image in (
        ("application/json", text),
        ("multipart/form-data", {"type": "string", "format": "binary"}),
    ):
        images = {"type": "array", "items": image, "description": "Images in any format that Pillow reads"}
        required = [*([IMAGES] if operation.needs_images else []), *schema.get("required", [])]
        properties = {IMAGES: images, **schema["properties"]}
        content[media_type] = {"schema": {"type": "object", "properties": properties, "required": required}}
    return {"required": True, "content": content}


__all__ = ["create_app"]
