"""The receiver's other port: what came in, as JSON and as a page, and what the receiver is to do next.

It is for whoever runs the receiver, never for the senders under test. On loopback it asks for no token, and answers
only to the names of loopback: a name that leads here by DNS rebinding finds nothing. Anywhere else it asks for a token.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import math
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dispatcher.conformance.receiver.inbox import CLEARED, Criteria, Entry, Inbox, judged
from dispatcher.conformance.receiver.masking import mask_headers, mask_text, masked
from dispatcher.errors import ConfigError

T = TypeVar("T")

#: bytes of a request to this port
MAX_BODY = 64 * 1024
#: seconds that POST /wait waits at most
LONGEST_WAIT = 600.0
#: requests on a page of GET /requests: by default, and at most
PAGE, LARGEST_PAGE = 100, 500
#: listeners to GET /events at one time
MAX_STREAMS = 16
#: seconds between signs of life in GET /events
_HEARTBEAT = 15.0
#: seconds that requests have to end when the receiver does
_GRACE = 1

#: more digits than any number here has; thousands of them are no number to Python either
_WHOLE = re.compile(r"[0-9]{1,15}")
_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


@dataclass(frozen=True, kw_only=True)
class Board:
    """What the control port shows and moves."""

    inbox: Inbox
    #: the receiver's counts
    report: Callable[[], dict[str, Any]]
    #: sets the script of a path. Raises ConfigError
    script: Callable[[str, str], None]
    #: makes a callback URL from `id`, `path`, `res_id` and `ttl`. Raises ConfigError; None: there is no secret for it
    issue: Callable[..., str] | None = None
    #: the authority of a throw-away certificate, as PEM
    authority: str | None = None
    #: sets what a name stands for. Raises ConfigError; None: there is no name server
    name: Callable[[str, str], None] | None = None
    #: texts that are masked wherever they stand
    secrets: tuple[str, ...] = field(default=(), repr=False)


class Control:
    """The control port. An async context manager: it listens within."""

    def __init__(self, board: Board, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> None:
        """Without a token it has to listen on loopback. Raises ConfigError."""
        if token is None and not is_loopback(host):
            raise ConfigError("the control port needs a token anywhere but on loopback")
        self._board = board
        self._host = host
        self._port = port
        self._token = token
        self._ending = asyncio.Event()
        self._streams = 0
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        #: after the start: where it is
        self.url = ""

    async def __aenter__(self) -> Control:
        listener = _listen(self._host, self._port)
        self._server = _Server(self.app())
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait({ready, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            listener.close()
            self._serving.result()
            raise ConfigError("the control port did not start")
        self.url = origin("http", self._host, listener.getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending.set()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving

    def app(self) -> ASGIApp:
        """The application, behind its guard."""
        routes = [
            Route("/", self._page),
            Route("/requests", self._list, methods=["GET"]),
            Route("/requests", self._clear, methods=["DELETE"]),
            Route("/requests/{number}", self._show),
            Route("/requests/{number}/raw", self._raw),
            Route("/count", self._count),
            Route("/export", self._export),
            Route("/wait", self._wait, methods=["POST"]),
            Route("/script", self._script, methods=["PUT"]),
            Route("/name", self._name, methods=["PUT"]),
            Route("/callback-urls", self._issue, methods=["POST"]),
            Route("/report", self._report),
            Route("/events", self._events),
            Route("/authority.pem", self._authority),
        ]
        handlers: Mapping[Any, Any] = {HTTPException: _problem, ConfigError: _unusable}
        return _Guard(Starlette(routes=routes, exception_handlers=handlers), self._token)

    # --- what came in ---------------------------------------------------------------------------------------

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        criteria = _criteria_of_query(query, "cursor", "limit")
        after = _number(query, "cursor", default=0, least=0, most=10**15)
        limit = _number(query, "limit", default=PAGE, least=1, most=LARGEST_PAGE)
        found, cursor = self._board.inbox.page(criteria, after=after, limit=limit)
        return JSONResponse(
            {"items": [summary(entry) for entry in found], "next_cursor": None if cursor is None else str(cursor)}
        )

    async def _clear(self, _: Request) -> Response:
        return JSONResponse({"forgotten": self._board.inbox.clear()})

    async def _show(self, request: Request) -> Response:
        entry = self._entry(request)
        is_bare = _flag(request.query_params, "reveal") or False
        return JSONResponse(detail(entry, secrets=None if is_bare else self._board.secrets))

    async def _raw(self, request: Request) -> Response:
        return Response(self._entry(request).request.raw, media_type="application/octet-stream")

    def _entry(self, request: Request) -> Entry:
        number = request.path_params["number"]
        entry = self._board.inbox.get(int(number)) if _WHOLE.fullmatch(number) else None
        if entry is None:
            raise HTTPException(404, "There is no such request, or none any more")
        return entry

    async def _count(self, request: Request) -> Response:
        inbox = self._board.inbox
        count = inbox.count(_criteria_of_query(request.query_params))
        return JSONResponse({"count": count, "total": inbox.total, "dropped": inbox.dropped})

    async def _export(self, _: Request) -> Response:
        return StreamingResponse(_slowly(self._board.inbox.export()), media_type="application/x-ndjson")

    async def _wait(self, request: Request) -> Response:
        body = await _object(request, {"count", "within", "criteria"})
        count, within = body.get("count", 1), body.get("within", 10)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= self._board.inbox.capacity:
            raise HTTPException(422, f"count is a whole number from 1 to {self._board.inbox.capacity}")
        if not _is_number(within) or not 0 <= within <= LONGEST_WAIT:
            raise HTTPException(422, f"within is a number of seconds from 0 to {LONGEST_WAIT:.0f}")
        criteria = _criteria_of_object(body.get("criteria", {}))
        try:
            found = await self._unless_ending(self._board.inbox.wait_until(criteria, count, within=float(within)))
        except TimeoutError as exc:
            raise HTTPException(408, str(exc)) from None
        if found is None:
            raise HTTPException(503, "The receiver is ending")
        return JSONResponse({"items": [summary(entry) for entry in found]})

    async def _report(self, _: Request) -> Response:
        return JSONResponse(self._board.report())

    # --- what it is to do -----------------------------------------------------------------------------------

    async def _script(self, request: Request) -> Response:
        body = await _object(request, {"path", "script"})
        path, script = body.get("path"), body.get("script")
        if not isinstance(path, str) or not isinstance(script, str | None) or "script" not in body:
            raise HTTPException(422, "path is a path or *, script is a script, or null for none")
        self._board.script(path, script or "")
        return Response(status_code=204)

    async def _name(self, request: Request) -> Response:
        body = await _object(request, {"name", "script"})
        name, script = body.get("name"), body.get("script")
        if not isinstance(name, str) or not isinstance(script, str | None) or "script" not in body:
            raise HTTPException(422, "name is a host's name or *, script is addresses and words, or null for none")
        if self._board.name is None:
            raise HTTPException(409, "There is no name server: start the receiver with --name-server-port")
        self._board.name(name, script or "")
        return Response(status_code=204)

    async def _issue(self, request: Request) -> Response:
        body = await _object(request, {"id", "path", "res_id", "ttl"})
        if self._board.issue is None:
            raise HTTPException(
                409, "There is no secret for callback URLs: start the receiver with --callback-secret-file"
            )
        ttl = body.pop("ttl", 3600)
        if not _is_number(ttl) or any(not isinstance(value, str) for value in body.values()):
            raise HTTPException(422, "ttl is a number of seconds; id, path and res_id are texts")
        return JSONResponse({"url": self._board.issue(**body, ttl=float(ttl))}, status_code=201)

    async def _authority(self, _: Request) -> Response:
        if self._board.authority is None:
            raise HTTPException(404, "The receiver made no certificate")
        return Response(self._board.authority, media_type="application/x-pem-file")

    # --- the page -------------------------------------------------------------------------------------------

    async def _page(self, _: Request) -> Response:
        content, policy = page()
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def _events(self, _: Request) -> Response:
        if self._streams >= MAX_STREAMS:
            raise HTTPException(503, "There are too many listeners")
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        inbox = self._board.inbox
        self._streams += 1
        try:
            with inbox.watch() as watch:
                # What is here already comes first; the watch is open, so that nothing falls in between.
                for entry in inbox.entries()[-LARGEST_PAGE:]:
                    yield _event("request", summary(entry))
                while not self._ending.is_set():
                    numbers = await self._unless_ending(watch.changed(), within=_HEARTBEAT)
                    if numbers is None:
                        yield ": still here\n\n"
                    for number in numbers or ():
                        entry_now = inbox.get(number)
                        if number == CLEARED:
                            yield _event("cleared", {})
                        elif entry_now is not None:
                            yield _event("request", summary(entry_now))
        finally:
            self._streams -= 1

    async def _unless_ending(self, work: Coroutine[Any, Any, T], *, within: float | None = None) -> T | None:
        """What the work comes to; None if the receiver ends first, or so many seconds do."""
        working, ending = asyncio.ensure_future(work), asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({working, ending}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, ending):
                task.cancel()
            await asyncio.gather(working, ending, return_exceptions=True)


# --- entries as JSON ------------------------------------------------------------------------------------------


def summary(entry: Entry) -> dict[str, Any]:
    """What may be seen of an entry at a glance: no path, no values of headers, no body."""
    request, judgement = entry.request, entry.judgement
    return {
        "number": request.number,
        "at": request.at,
        "method": request.method,
        "event": entry.event,
        "delivery": entry.delivery,
        "length": len(request.body),
        "is_complete": request.is_complete,
        "status": entry.status,
        "fault": entry.fault,
        "is_processed": entry.is_processed,
        "failure": entry.failure,
        "judgement": None if judgement is None else judged(judgement),
    }


def detail(entry: Entry, *, secrets: tuple[str, ...] | None) -> dict[str, Any]:
    """All of an entry. Masked is what may be a secret, and these texts; None: nothing is masked."""
    request = entry.request
    is_masked = secrets is not None
    try:
        text: str | None = request.body.decode()
    except UnicodeDecodeError:
        text = None
    return {
        **summary(entry),
        "connection": request.connection,
        "remote": request.remote,
        "is_tls": request.is_tls,
        "is_masked": is_masked,
        "target": request.target if secrets is None else masked(request.target),
        "headers": list(request.headers if secrets is None else mask_headers(request.headers, secrets)),
        "body": text if text is None or secrets is None else mask_text(text, secrets),
        # of bytes that are no text nobody can say what they hold
        "body_base64": base64.b64encode(request.body).decode() if text is None and not is_masked else None,
    }


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _slowly(lines: Iterator[str]) -> AsyncIterator[str]:
    """Lines, between which others have their turn."""
    for line in lines:
        yield line
        await asyncio.sleep(0)


# --- reading requests -----------------------------------------------------------------------------------------


def _criteria_of_query(query: QueryParams, *others: str) -> Criteria:
    names = ("path", "event", "delivery", "text", "is_accepted", *others)
    # One that is misspelt would let everything through.
    if not set(query) <= set(names):
        raise HTTPException(422, f"The query has any of {', '.join(names)}")
    return Criteria(
        path=query.get("path"),
        event=query.get("event"),
        delivery=query.get("delivery"),
        text=query.get("text"),
        is_accepted=_flag(query, "is_accepted"),
    )


def _criteria_of_object(given: object) -> Criteria:
    names = ("path", "event", "delivery", "text")
    if not isinstance(given, dict) or not set(given) <= {*names, "is_accepted"}:
        raise HTTPException(422, f"criteria is an object with any of {', '.join(names)} and is_accepted")
    if any(not isinstance(given.get(name), str | None) for name in names):
        raise HTTPException(422, f"{', '.join(names)} are texts")
    if not isinstance(given.get("is_accepted"), bool | None):
        raise HTTPException(422, "is_accepted is true or false")
    return Criteria(**given)


def _flag(query: QueryParams, name: str) -> bool | None:
    value = query.get(name)
    if value is not None and value not in _TRUE | _FALSE:
        raise HTTPException(422, f"{name} is true or false")
    return None if value is None else value in _TRUE


def _number(query: QueryParams, name: str, *, default: int, least: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise HTTPException(422, f"{name} is a whole number from {least} to {most}")
    return int(text)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


async def _object(request: Request, names: set[str]) -> dict[str, Any]:
    """The JSON object of a request, with these members only."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"The body has at most {MAX_BODY} bytes")
    try:
        content = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError):
        raise HTTPException(422, "The body is not JSON") from None
    if not isinstance(content, dict) or not set(content) <= names:
        raise HTTPException(422, f"The body is an object with any of {', '.join(sorted(names))}")
    return content


async def _problem(_: Request, exc: HTTPException) -> Response:
    return _refusal(exc.status_code, exc.detail)


async def _unusable(_: Request, exc: ConfigError) -> Response:
    return _refusal(422, str(exc))


def _refusal(status: int, detail: str) -> Response:
    return JSONResponse({"status": status, "detail": detail}, status, media_type="application/problem+json")


# --- the guard ------------------------------------------------------------------------------------------------


class _Guard:
    """Who may ask at all, and what every answer says about itself."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refused(Request(scope))
        await (refusal or self._app)(scope, receive, _with_headers(send))

    def _refused(self, request: Request) -> Response | None:
        host, source = request.headers.get("host", ""), request.headers.get("origin")
        if self._token is None and not _is_loopback_host(host):
            return _refusal(421, "This port answers to 127.0.0.1, [::1] and localhost only")
        # Another page in the same browser may send requests here, though it could not read the answers.
        if source is not None and source != f"http://{host}":
            return _refusal(403, "This port answers to its own page only")
        if request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return _refusal(403, "This port answers to its own page only")
        # The page itself holds nothing; it asks for what it shows with the token.
        if self._token is not None and request.url.path != "/":
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
                return _refusal(401, "The token that was printed at the start is needed: Authorization: Bearer …")
        return None


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                *((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")),
                *((b"cache-control", b"no-store"), (b"cross-origin-resource-policy", b"same-origin")),
                *((b"cross-origin-opener-policy", b"same-origin"), (b"x-frame-options", b"DENY")),
            ]
            if not any(name == b"content-security-policy" for name, _ in message["headers"]):
                headers.append((b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"))
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return sending


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine's loopback, without asking any name server."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_loopback_host(host: str) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return False
    return parts.netloc == host and parts.username is None and is_loopback(parts.hostname or "")


# --- the page -------------------------------------------------------------------------------------------------


def page() -> tuple[str, str]:
    """The page, and the policy that lets its own style and script run and nothing else."""
    content = resources.files(__package__).joinpath("page.html").read_text("utf-8")

    def digest(element: str) -> str:
        inside = re.search(rf"<{element}>(.*?)</{element}>", content, re.DOTALL)
        if inside is None:
            raise LookupError(f"the page has no <{element}>")
        return base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()

    policy = (
        f"default-src 'none'; style-src 'sha256-{digest('style')}'; script-src 'sha256-{digest('script')}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return content, policy


# --- listening ------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """Uvicorn within a loop that is not its own."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever owns the loop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets=sockets)
        self.ready.set()


def origin(scheme: str, host: str, port: int) -> str:
    """Scheme, host and port as a URL has them."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise ConfigError(f"the control port cannot listen on {host}, port {port}: {exc.strerror or exc}") from exc
    return listener
