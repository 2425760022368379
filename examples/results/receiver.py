"""A results service as a customer of ours would run it: it takes `POST /results/{res_id}/{jwt}`.

It shares no code with the dispatcher, and so proves what it checks: the token with PyJWT, `X-Hub-Signature`
with `hmac`, the Standard Webhooks signature with the package `standardwebhooks`; both over the bytes as sent.

    python examples/results/receiver.py --issue note-1

`--issue` prints a callback URL for one result, and the secret to send with it. `GET /received` shows what came in.
One result can be made to fail with 503 first: `--fail note-1 --times 2`. RESULTS_JWT_KEY and
RESULTS_WEBHOOK_SECRET in the environment fix what is otherwise made anew at each start.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

import jwt
import uvicorn
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MAX_BODY_BYTES = 1024 * 1024
#: how far a delivery's timestamp may be from our clock
TOLERANCE_SECONDS = 300
REQUIRED_CLAIMS = ("path", "res_id", "_id", "exp")


class Refused(Exception):
    """The delivery is not accepted. The text is the whole answer: it repeats nothing of the request."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request that came in, and what was found when it was checked. Holds no token and no secret."""

    res_id: str
    #: the claim `_id` of a valid token: under this id the result is stored, once
    document_id: str | None
    #: X-Webhook-Delivery: the same on every attempt
    delivery: str | None
    attempt: int | None
    token_ok: bool
    hub_signature_ok: bool
    standard_signature_ok: bool
    #: what we answered
    status: int
    reason: str
    body_bytes: int
    result: Any = None


@dataclass(kw_only=True)
class Inbox:
    """What a customer keeps: results by document id, and a record of every request."""

    jwt_key: str
    secret: str
    #: res_id -> how many more of its deliveries are answered 503
    failures: dict[str, int] = field(default_factory=dict)
    requests: list[Received] = field(default_factory=list)
    #: document id -> the delivery that brought it
    stored: dict[str, str] = field(default_factory=dict)


def issue(inbox: Inbox, url: str, res_id: str, *, life: float = 3600) -> str:
    """A callback URL for one result: its token allows this result and no other, for `life` seconds."""
    claims = {"path": "/results", "res_id": res_id, "_id": secrets.token_hex(12), "exp": int(time.time() + life)}
    return f"{url}/results/{res_id}/{jwt.encode(claims, inbox.jwt_key, algorithm='HS256')}"


def new_secret() -> str:
    """A signing secret as Standard Webhooks writes them."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def check_token(token: str, *, key: str, res_id: str, request_path: str) -> str:
    """The document id of a token that allows exactly this request."""
    try:
        claims = jwt.decode(token, key, algorithms=["HS256"], options={"require": list(REQUIRED_CLAIMS)})
    except jwt.InvalidTokenError as error:
        raise Refused(401, "the token is not valid") from error
    prefix = request_path.removesuffix(f"/{res_id}/{token}")
    if prefix == request_path or claims["path"] != prefix:
        raise Refused(403, "the token is for another path")
    if claims["res_id"] != res_id:
        raise Refused(403, "the token is for another resource")
    document_id = claims["_id"]
    if not isinstance(document_id, str) or not document_id:
        raise Refused(401, "the token is not valid")
    return document_id


def hub_signature_matches(body: bytes, header: str, secret: str) -> bool:
    """`X-Hub-Signature: sha256=<hex>`, as WebSub has it: the key is the text of the secret."""
    expected = "sha256=" + hmac.new(secret.encode(), body, "sha256").hexdigest()
    return hmac.compare_digest(header.encode(), expected.encode())


def standard_signature_matches(body: bytes, headers: dict[str, str], secret: str) -> bool:
    """Standard Webhooks. The package also checks that `webhook-timestamp` is within five minutes."""
    try:
        Webhook(secret).verify(body, headers, json_parse=False)
    except (WebhookVerificationError, ValueError):
        return False
    return True


def check_freshness(headers: dict[str, str], now: float) -> None:
    """The attempt is recent, and both ways to name the delivery agree."""
    try:
        sent_at = int(headers["x-webhook-timestamp"])
    except (KeyError, ValueError) as error:
        raise Refused(400, "X-Webhook-Timestamp is missing or not a number") from error
    if abs(now - sent_at) > TOLERANCE_SECONDS:
        raise Refused(400, "X-Webhook-Timestamp is too far from now")
    if headers.get("x-webhook-delivery") != headers.get("webhook-id"):
        raise Refused(400, "X-Webhook-Delivery and webhook-id differ")


async def read_body(request: Request) -> bytes:
    """The raw bytes, up to the limit."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, "the body is too large")
    return bytes(body)


def store(inbox: Inbox, document_id: str, delivery: str) -> str:
    """Keeps a result once: another attempt of the same delivery is fine, another delivery is not."""
    if inbox.stored.setdefault(document_id, delivery) != delivery:
        raise Refused(409, "there is a result with this _id already")
    return "stored"


async def receive(request: Request) -> Response:
    """Check token, signatures and freshness, then store, and write down what was found either way."""
    inbox: Inbox = request.app.state.inbox
    headers = dict(request.headers)
    res_id, token = request.path_params["res_id"], request.path_params["jwt"]
    attempt = headers.get("x-webhook-attempt", "")
    document_id, body, hub_ok, standard_ok, result = None, b"", False, False, None
    try:
        body = await read_body(request)
        document_id = check_token(token, key=inbox.jwt_key, res_id=res_id, request_path=request.url.path)
        hub_ok = hub_signature_matches(body, headers.get("x-hub-signature", ""), inbox.secret)
        standard_ok = standard_signature_matches(body, headers, inbox.secret)
        if not (hub_ok and standard_ok):
            raise Refused(401, "a signature does not match")
        check_freshness(headers, time.time())
        result = json.loads(body)
        if inbox.failures.get(res_id, 0) > 0:
            inbox.failures[res_id] -= 1
            raise Refused(503, "down for maintenance")
        status, reason = 200, store(inbox, document_id, headers["webhook-id"])
    except Refused as refused:
        status, reason = refused.status, refused.reason
    except ValueError:
        status, reason = 400, "the body is not JSON"
    inbox.requests.append(
        Received(
            res_id=res_id,
            document_id=document_id,
            delivery=headers.get("x-webhook-delivery"),
            attempt=int(attempt) if attempt.isdecimal() else None,
            token_ok=document_id is not None,
            hub_signature_ok=hub_ok,
            standard_signature_ok=standard_ok,
            status=status,
            reason=reason,
            body_bytes=len(body),
            result=result,
        )
    )
    return JSONResponse({"detail": reason}, status_code=status)


async def show_received(request: Request) -> Response:
    """Every request so far, oldest first."""
    inbox: Inbox = request.app.state.inbox
    return JSONResponse({"requests": [asdict(entry) for entry in inbox.requests], "stored": len(inbox.stored)})


def build_app(inbox: Inbox, *, ready_line: str | None = None) -> Starlette:
    """The service; prints the line, if there is one, as soon as it answers."""

    @contextlib.asynccontextmanager
    async def announce(_app: Starlette) -> AsyncIterator[None]:
        if ready_line is not None:
            print(ready_line, flush=True)
        yield

    app = Starlette(
        lifespan=announce,
        routes=[
            Route("/results/{res_id}/{jwt}", receive, methods=["POST"]),
            Route("/received", show_received, methods=["GET"]),
        ],
    )
    app.state.inbox = inbox
    return app


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket, and the URL it is reached by; port 0 picks a free one."""
    listener = socket.create_server((host, port), backlog=256)
    return listener, f"http://{host}:{listener.getsockname()[1]}"


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8081)
    options.add_argument("--issue", metavar="RES_ID", help="print a callback URL for this result, good for an hour")
    options.add_argument("--fail", metavar="RES_ID", help="a result that is answered 503 at first")
    options.add_argument("--times", type=int, default=2, help="how often (default: %(default)s)")
    chosen = options.parse_args()
    inbox = Inbox(
        jwt_key=os.environ.get("RESULTS_JWT_KEY") or secrets.token_hex(32),
        secret=os.environ.get("RESULTS_WEBHOOK_SECRET") or new_secret(),
    )
    if chosen.fail:
        inbox.failures[chosen.fail] = chosen.times
    listener, url = listen(chosen.host, chosen.port)
    lines = [f"receiver ready on {url}"]
    if chosen.issue:
        lines += [f"RESULT_URL={issue(inbox, url, chosen.issue)}", f"RESULT_SECRET={inbox.secret}"]
    app = build_app(inbox, ready_line="\n".join(lines))
    # no access log: the paths hold tokens
    config = uvicorn.Config(app, access_log=False, log_level="warning", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
