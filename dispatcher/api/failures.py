"""Errors as answers over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.api.problems import MEDIA_TYPE, unavailable
from dispatcher.errors import FieldError, LeaseLost, Problem, StoreUnavailable

log = structlog.get_logger(__name__)


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
        return fault(request.method, exc)


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


def fault(method: str, error: BaseException) -> Response:
    """The answer to an error that is ours. Only its kind is logged: its text may hold anything."""
    log.error("request_failed_inside", method=method, error=type(error).__qualname__)
    return _plain(500)


def _plain(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """A problem that says no more than its status does (RFC 9457, section 4.2.1)."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    return Response(msgspec.json.encode(body), status_code=status, headers=headers, media_type=MEDIA_TYPE)
