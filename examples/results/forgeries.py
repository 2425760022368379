"""Requests that a careful receiver refuses, so that what it accepts means something."""

from __future__ import annotations

import hmac
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import jwt
from standardwebhooks import Webhook

RES_ID = "inv-0000"
BODY = json.dumps({"status": "succeeded", "result": {"total": 1}}).encode()


@dataclass(frozen=True, kw_only=True)
class Forgery:
    """A request with one thing wrong."""

    what: str
    path: str
    headers: dict[str, str]


def signed(secret: str, at: float) -> dict[str, str]:
    """Headers as the dispatcher sends them, made with other people's code."""
    delivery = f"forged-{at:.0f}"
    standard = Webhook(secret).sign(delivery, datetime.fromtimestamp(int(at), UTC), BODY.decode())
    return {
        "content-type": "application/json",
        "x-webhook-delivery": delivery,
        "x-webhook-timestamp": str(int(at)),
        "x-hub-signature": "sha256=" + hmac.new(secret.encode(), BODY, "sha256").hexdigest(),
        "webhook-id": delivery,
        "webhook-timestamp": str(int(at)),
        "webhook-signature": standard,
    }


def forgeries(*, jwt_key: str, secret: str, other_secret: str) -> list[Forgery]:
    """Tokens that ended, are for another resource or by somebody else; a wrong secret; an old request."""
    now = time.time()

    def path(*, key: str = jwt_key, res_id: str = RES_ID, exp: float = now + 60) -> str:
        claims = {"path": "/results", "res_id": res_id, "_id": "forged", "exp": int(exp)}
        return f"/results/{RES_ID}/{jwt.encode(claims, key, algorithm='HS256')}"

    return [
        Forgery(what="a token that has ended", path=path(exp=now - 60), headers=signed(secret, now)),
        Forgery(what="a token for another resource", path=path(res_id="inv-9"), headers=signed(secret, now)),
        Forgery(what="somebody else's token", path=path(key=other_secret), headers=signed(secret, now)),
        Forgery(what="a signature by another secret", path=path(), headers=signed(other_secret, now)),
        Forgery(what="a request of ten minutes ago", path=path(), headers=signed(secret, now - 600)),
    ]
