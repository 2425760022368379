"""Errors as answers: problem details (RFC 9457)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.bodies import CLOUDEVENTS_JSON, FORM, JSON
from dispatcher.errors import FieldError, LeaseLost, Problem, StoreUnavailable
from dispatcher.models import TERMINAL_STATES, BodyMode
from subscriptions.health import DisableOn
from subscriptions.models import OnExhausted, Ordering, Verification
from subscriptions.signatures import HUB_METHODS, Scheme

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
#: seconds after which a client may try again when the database cannot take a write
RETRY_AFTER = 2

_AT = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`\Z")
_FIELD = re.compile(r"Object (?P<what>missing required|contains unknown) field `(?P<name>.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\[(?P<index>\d+)\]")
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
_EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]+)`")
#: msgspec's words for values of the wrong size; they hold limits, never values
_SIZED = re.compile(r"Expected `[^`]+` (?:of length|>=|<=|>|<|matching)[^`]*", re.DOTALL)

CONTENT_TYPES = (JSON, FORM, CLOUDEVENTS_JSON)
#: fields that take one of a few words
_CHOICES: dict[str, tuple[str, ...]] = {
    "schemes": tuple(Scheme),
    "body": tuple(BodyMode),
    "hub_method": HUB_METHODS,
    "ordering": tuple(Ordering),
    "on_exhausted": tuple(OnExhausted),
    "disable_on": tuple(DisableOn),
    "verification": tuple(Verification),
    "content_type": CONTENT_TYPES,
    "contentType": CONTENT_TYPES,
    "states": TERMINAL_STATES,
    "held": ("release", "discard"),
}


def response_of(problem: Problem) -> Response:
    """The answer that a problem is."""
    headers = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if problem.slug == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        msgspec.json.encode(problem.as_dict()),
        status_code=problem.status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def invalid(field: str, detail: str) -> Problem:
    """A field that was wrong: its JSON pointer, and what would be right."""
    return Problem("validation", "The request is not valid.", errors=[FieldError(field=field, detail=detail)])


def too_large(field: str, limit: int, *, unit: str = "bytes") -> Problem:
    """A field that was larger than we take."""
    return Problem(
        "too-large",
        f"At most {limit} {unit} are taken here.",
        errors=[FieldError(field=field, detail=f"must not have more than {limit} {unit}")],
    )


def not_found(kind: str) -> Problem:
    """There is no such object, or it is another account's."""
    return Problem("not-found", f"There is no such {kind}.")


def unavailable() -> Problem:
    """The database cannot take the write now; nothing was stored."""
    return Problem("unavailable", "Nothing was stored. Try again in a moment.", retry_after=RETRY_AFTER)


def fault(request: Request, error: Exception) -> Response:
    """The answer to an error that is ours. Only its kind is logged: its text may hold anything."""
    log.error("request_failed_inside", method=request.method, error=type(error).__qualname__)
    return _plain(500)


def _plain(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """A problem that says no more than its status does (RFC 9457, section 4.2.1)."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    return Response(msgspec.json.encode(body), status_code=status, headers=headers, media_type=MEDIA_TYPE)


def of_decoding(error: Exception, prefix: str = "") -> Problem:
    """What was wrong with a JSON body, by field. Values of the body are never repeated."""
    if isinstance(error, msgspec.ValidationError):
        field, detail = _explain(str(error))
        return Problem(
            "validation",
            "The body does not have the right shape.",
            errors=[FieldError(field=prefix + field, detail=detail)],
        )
    if isinstance(error, RecursionError):
        nested = FieldError(field=prefix, detail="must not be nested so deeply")
        return Problem("validation", "The body does not have the right shape.", errors=[nested])
    return Problem("invalid-json", "The body is not valid JSON in UTF-8.")


def _explain(text: str) -> tuple[str, str]:
    at = _AT.search(text)
    pointer = _pointer(at["path"]) if at else ""
    message = text[: at.start()] if at else text
    field = _FIELD.match(message)
    if field:
        # A name of any other form may be a value in the wrong place, so it is not repeated.
        name = field["name"] if _PLAIN_NAME.match(field["name"]) else "…"
        known = field["what"] == "missing required"
        return f"{pointer}/{name}", "is required" if known else "is not a field of this object"
    if _SIZED.fullmatch(message):
        return pointer, message.replace("`", "").replace("Expected", "must be")
    if message.startswith("Invalid enum value"):
        choices = next((_CHOICES[name] for name in pointer.split("/") if name in _CHOICES), ())
        return pointer, f"must be one of {', '.join(choices)}"
    if "datetime" in message:
        return pointer, "must be a time with its offset, as in RFC 3339"
    wanted = _EXPECTED.match(message)
    return pointer, f"must be {wanted['wanted']}" if wanted else "has no valid value"


def _pointer(path: str) -> str:
    return "".join("/" + (step["name"] or step["index"]) for step in _STEP.finditer(path))


def install(app: FastAPI) -> None:
    """Answer every error of the app with problem details."""

    @app.exception_handler(Problem)
    async def _problem(_request: Request, exc: Problem) -> Response:
        return response_of(exc)

    @app.exception_handler(StoreUnavailable)
    async def _unavailable(_request: Request, _exc: StoreUnavailable) -> Response:
        return response_of(unavailable())

    @app.exception_handler(LeaseLost)
    async def _lease_lost(_request: Request, _exc: LeaseLost) -> Response:
        return response_of(Problem("conflict", "The lease of this task is no longer held."))

    @app.exception_handler(RequestValidationError)
    async def _parameters(_request: Request, exc: RequestValidationError) -> Response:
        errors = [
            FieldError(field="/" + "/".join(str(part) for part in error["loc"][1:]), detail=error["msg"])
            for error in exc.errors()
        ]
        return response_of(Problem("validation", "A parameter is not valid.", errors=errors))

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, exc: HTTPException) -> Response:
        if exc.status_code == HTTPStatus.NOT_FOUND:
            return response_of(Problem("not-found", "There is nothing at this path."))
        return _plain(exc.status_code, headers=exc.headers)

    @app.exception_handler(Exception)
    async def _fault(request: Request, exc: Exception) -> Response:
        return fault(request, exc)
