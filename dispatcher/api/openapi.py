"""The OpenAPI 3.1 document: the routes FastAPI knows, the shapes msgspec knows, and the requests that we send."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dispatcher.api import shapes
from dispatcher.errors import PROBLEMS

_REF = "#/components/schemas/{name}"


def documented(
    summary: str,
    shape: type[msgspec.Struct],
    *,
    tag: str,
    status: int = 200,
    body: type[msgspec.Struct] | None = None,
    problems: tuple[int, ...] = (404, 422),
    idempotent: bool = False,
    open_to_all: bool = False,
    callbacks: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a route says of itself: for the decorator of a FastAPI route."""
    statuses = problems if open_to_all else (401, 403, *problems, 503)
    if body is not None:
        statuses = (*statuses, 413, 422)
    extra: dict[str, Any] = {} if open_to_all else {"security": [{"token": []}]}
    if body is not None:
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        }
    if idempotent:
        extra["parameters"] = [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "Requests with the same key and body are one request, for 24 hours.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
            }
        ]
    if callbacks is not None:
        extra["callbacks"] = callbacks
    return {
        "summary": summary,
        "tags": [tag],
        "response_model": None,
        "status_code": status,
        "responses": {
            status: {"description": "Success", "content": {"application/json": {"schema": _ref(shape)}}},
            **{code: _problem(code) for code in sorted(set(statuses))},
        },
        "openapi_extra": extra,
    }


def install(app: FastAPI) -> None:
    """Serve this document instead of the one FastAPI would make."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def build(app: FastAPI) -> dict[str, Any]:
    """The document."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, schemas = msgspec.json.schema_components(shapes.ALL, ref_template=_REF)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    return document


def _ref(shape: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}


def _problem(status: int) -> dict[str, Any]:
    titles = [title for code, title in PROBLEMS.values() if code == status]
    return {
        "description": "; ".join(titles) or "Problem",
        "content": {"application/problem+json": {"schema": _ref(shapes.ProblemDetails)}},
    }


#: the request that we send to a task's callback URL, for the `callbacks` of `POST /tasks`
CALLBACK: dict[str, Any] = {
    "result": {
        "{$request.body#/callback_url}": {
            "post": {
                "summary": "The task's result, at the URL that the task named",
                "parameters": [
                    {
                        "name": name,
                        "in": "header",
                        "required": required,
                        "description": text,
                        "schema": {"type": kind},
                    }
                    for name, required, kind, text in (
                        ("X-Webhook-Delivery", True, "string", "The same on every attempt and redelivery."),
                        ("X-Webhook-Attempt", True, "integer", "1, 2, 3 …"),
                        ("X-Webhook-Event", True, "string", "The task's type."),
                        ("X-Webhook-Timestamp", True, "integer", "Unix seconds of this attempt."),
                        ("X-Hub-Signature", False, "string", "`websub`: sha256= and the HMAC in hex."),
                        ("webhook-id", False, "string", "`standard`: equal to X-Webhook-Delivery."),
                        ("webhook-timestamp", False, "integer", "`standard`: Unix seconds."),
                        ("webhook-signature", False, "string", "`standard`: v1, and the HMAC in base64."),
                        ("traceparent", False, "string", "The trace context that the task came with."),
                    )
                ],
                "requestBody": {
                    "required": True,
                    "description": "By the task's `body`: the payload's bytes, or an envelope around the result.",
                    "content": {"application/json": {"schema": {}}},
                },
                "responses": {
                    "2XX": {"description": "Delivered."},
                    "410": {"description": "Given up at once."},
                    "4XX": {"description": "Given up, but for 408, 423, 425 and 429, which are tried again."},
                    "default": {"description": "Tried again by the schedule; Retry-After is kept."},
                },
            }
        }
    }
}
