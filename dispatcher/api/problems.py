"""Errors as answers: problem details (RFC 9457)."""

from __future__ import annotations

import re

import msgspec
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.errors import FieldError, LeaseLost, Problem, StoreUnavailable

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


def unavailable() -> Problem:
    """The database cannot take the write now; nothing was stored."""
    return Problem("unavailable", "Nothing was stored. Try again in a moment.", retry_after=RETRY_AFTER)


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
        return Problem("too-large", "The JSON is nested too deeply.", status=422)
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
        answer = response_of(Problem("not-found", "There is nothing here for this method.", status=exc.status_code))
        answer.headers.update(exc.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def _fault(request: Request, exc: Exception) -> Response:
        log.error("request_failed_inside", method=request.method, error=type(exc).__qualname__)
        return Response(
            msgspec.json.encode({"type": "about:blank", "title": "Internal Server Error", "status": 500}),
            status_code=500,
            media_type=MEDIA_TYPE,
        )
