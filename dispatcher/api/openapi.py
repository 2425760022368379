"""The OpenAPI 3.1 document: the routes FastAPI knows, the shapes msgspec knows, and the requests that we send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dispatcher.api import shapes
from dispatcher.errors import PROBLEMS

_REF = "#/components/schemas/{name}"


def documented(
    summary: str,
    shape: type[msgspec.Struct] | None,
    *,
    tag: str,
    status: int = 200,
    body: type[msgspec.Struct] | None = None,
    body_required: bool = True,
    problems: tuple[int, ...] = (404, 422),
    idempotent: bool = False,
    open_to_all: bool = False,
    callbacks: dict[str, Any] | None = None,
    also: Mapping[int, type[msgspec.Struct]] | None = None,
) -> dict[str, Any]:
    """What a route says of itself: for the decorator of a FastAPI route. Without a shape, it answers no body.

    `also` has further statuses of success.
    """
    statuses = problems if open_to_all else (401, 403, *problems, 503)
    if body is not None:
        statuses = (*statuses, 413, 422)
    extra: dict[str, Any] = {} if open_to_all else {"security": [{"token": []}]}
    if body is not None:
        extra["requestBody"] = {
            "required": body_required,
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
            **{code: _success(one) for code, one in {status: shape, **(also or {})}.items()},
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
    document["webhooks"] = WEBHOOKS
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    return document


def _ref(shape: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}


def _success(shape: type[msgspec.Struct] | None) -> dict[str, Any]:
    if shape is None:
        return {"description": "Success"}
    return {"description": "Success", "content": {"application/json": {"schema": _ref(shape)}}}


def _problem(status: int) -> dict[str, Any]:
    titles = [title for code, title in PROBLEMS.values() if code == status]
    return {
        "description": "; ".join(titles) or "Problem",
        "content": {"application/problem+json": {"schema": _ref(shapes.ProblemDetails)}},
    }


#: headers of every delivery: name, whether it always comes, type, what it says
_HEADERS = (
    ("X-Webhook-Delivery", True, "string", "The same on every attempt and redelivery."),
    ("X-Webhook-Attempt", True, "integer", "1, 2, 3 …"),
    ("X-Webhook-Event", True, "string", "The type of the event, or of the task."),
    ("X-Webhook-Timestamp", True, "integer", "Unix seconds of this attempt."),
    (
        "X-Hub-Signature",
        False,
        "string",
        "`websub`: the method, sha256= if no other is set, and the HMAC in hex; `github`: sha1= and the HMAC in hex;"
        " `servicestack`: sha1= and the HMAC-SHA256 in hex.",
    ),
    ("X-Hub-Signature-256", False, "string", "`github`: sha256= and the HMAC in hex."),
    ("X-Webhook-Signature", False, "string", "`timestamped`: the HMAC-SHA256 in hex."),
    ("webhook-id", False, "string", "`standard`, `standard-ed25519`: equal to X-Webhook-Delivery."),
    ("webhook-timestamp", False, "string", "`standard`, `standard-ed25519`: Unix seconds."),
    (
        "webhook-signature",
        False,
        "string",
        "`standard`: v1, and the HMAC in base64; `standard-ed25519`: v1a, and the signature in base64. There may be"
        " several, with spaces between them.",
    ),
    ("Content-Digest", False, "string", "`rfc9421`, `rfc9421-ed25519`: RFC 9530."),
    ("Signature-Input", False, "string", "`rfc9421`, `rfc9421-ed25519`: label `webhook`."),
    ("Signature", False, "string", "`rfc9421`, `rfc9421-ed25519`: label `webhook`."),
    ("traceparent", False, "string", "The trace context that the event or task came with."),
)


def _delivery(summary: str, body: str, answers: dict[str, str]) -> dict[str, Any]:
    """The request that we send, as an operation of somebody else's."""
    return {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "header", "required": required, "description": text, "schema": {"type": kind}}
            for name, required, kind, text in _HEADERS
        ],
        "requestBody": {
            "required": True,
            "description": body,
            "content": {
                "application/json": {"schema": {}},
                "application/cloudevents+json": {"schema": {}},
                "application/x-www-form-urlencoded": {"schema": {}},
            },
        },
        "responses": {status: {"description": text} for status, text in answers.items()},
    }


#: the request that we send to a task's callback URL, for the `callbacks` of `POST /tasks`
CALLBACK: dict[str, Any] = {
    "result": {
        "{$request.body#/callback_url}": {
            "post": _delivery(
                "The task's result, at the URL that the task named",
                "By the task's `body`: the payload's bytes, or an envelope around the result, a CloudEvent, a form.",
                {
                    "2XX": "Delivered.",
                    "410": "Given up at once.",
                    "4XX": "Given up, but for 408, 423, 425 and 429, which are tried again.",
                    "default": "Tried again by the schedule; Retry-After is kept.",
                },
            )
        }
    }
}

#: the requests that we send to a subscription's URL
WEBHOOKS: dict[str, Any] = {
    "event": {
        "post": {
            "tags": ["events"],
            **_delivery(
                "An event, at the URL of each subscription that wants it",
                "By the subscription's `body`: the payload's bytes, an envelope `{type, timestamp, data}` around them,"
                " a CloudEvent, or the form `payload=<json>`.",
                {
                    "2XX": "Delivered.",
                    "410": "Given up, and the subscription is disabled for good.",
                    "4XX": "The subscription is disabled, by its policy, and deliveries are held for it; but 408, 423,"
                    " 425 and 429 are tried again.",
                    "default": "Tried again by the schedule; Retry-After is kept. The header `webhook-delivery:"
                    " disable` disables the subscription, `webhook-delivery: abort-message` gives up this delivery.",
                },
            ),
        }
    },
    "handshake": {
        "options": {
            "tags": ["subscriptions"],
            "summary": "May we send? Asked before a subscription with `verification: handshake` is enabled",
            "parameters": [
                {"name": name, "in": "header", "required": required, "description": text, "schema": {"type": "string"}}
                for name, required, text in (
                    ("WebHook-Request-Origin", True, "The DNS name that stands for us."),
                    ("WebHook-Request-Callback", False, "A URL to GET or POST, to grant it later."),
                    ("WebHook-Request-Rate", False, "Requests per minute that we would like to send."),
                )
            ],
            "responses": {
                "2XX": {
                    "description": "Granted, if WebHook-Allowed-Origin names us or is `*`.",
                    "headers": {
                        "WebHook-Allowed-Origin": {"schema": {"type": "string"}},
                        "WebHook-Allowed-Rate": {
                            "description": "Requests per minute, or `*`.",
                            "schema": {"type": "string"},
                        },
                    },
                },
                "default": {"description": "Not granted."},
            },
        }
    },
}
