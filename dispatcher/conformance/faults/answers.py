"""Answers in good HTTP, and no success."""

from __future__ import annotations

import math
import time
from email.utils import formatdate

from dispatcher.conformance.faults.behaviours import replies, sends, status_line
from dispatcher.conformance.faults.fault import STATUS, Settings, fault, seconds_of, status_of
from dispatcher.conformance.wire.exchange import Behaviour, Exchange
from dispatcher.conformance.wire.requests import Headers, Reply
from dispatcher.errors import ConfigError

_REDIRECTS = (301, 302, 303, 307, 308)


@fault(
    "It answers with this status.",
    expects="http_error",
    code="the status, 100 to 999 (500)",
    retry_after="seconds for the Retry-After header",
    retry_after_date="the same as a date, so many seconds ahead; below 0 in the past",
    retry_after_raw="any text for the Retry-After header",
    body="a text for the body",
)
def _status_(settings: Settings) -> Behaviour:
    code = settings.whole("code", 500, low=100, high=999)
    if sum(settings.has(name) for name in ("retry-after", "retry-after-date", "retry-after-raw")) > 1:
        raise ConfigError("only one of 'retry-after', 'retry-after-date' and 'retry-after-raw' can stand there")
    ahead = settings.number("retry-after-date", 0, low=-1e9, high=1e9)
    fixed: Headers = ()
    if settings.has("retry-after"):
        fixed = (("Retry-After", str(settings.whole("retry-after", 0, low=0, high=10**9))),)
    elif settings.has("retry-after-raw"):
        fixed = (("Retry-After", settings.text("retry-after-raw", "")),)
    body = settings.text("body", "").encode()
    if code < 200:
        # Nothing follows: to whoever reads it as an interim answer, which it is, the connection breaks.
        return sends(
            b"".join([status_line(code), *(f"{name}: {value}\r\n".encode() for name, value in fixed), b"\r\n"])
        )

    async def behave(exchange: Exchange) -> None:
        headers = fixed
        if settings.has("retry-after-date"):
            # up to the whole second: a date has no smaller parts, and it is not to name less than was asked for
            headers = (("Retry-After", formatdate(math.ceil(time.time() + ahead), usegmt=True)),)
        await exchange.reply(Reply(status=code, headers=headers, body=body))

    return behave


@fault(
    "It answers in good HTTP, but late.",
    expects="timeout",
    after="seconds until it answers (30)",
    status=STATUS,
)
def _late(settings: Settings) -> Behaviour:
    after, reply = seconds_of(settings, "after", 30.0), Reply(status=status_of(settings, 200))

    async def behave(exchange: Exchange) -> None:
        if not await exchange.until_gone(after):
            await exchange.reply(reply)

    return behave


@fault(
    "It redirects to another place. A good sender goes nowhere it was not told to by its owner.",
    expects="http_error",
    to="the Location (/redirected)",
    status="301, 302, 303, 307 or 308 (302)",
)
def _redirect(settings: Settings) -> Behaviour:
    status = settings.whole("status", 302, low=301, high=308)
    if status not in _REDIRECTS:
        raise ConfigError(f"'status' has to be one of {', '.join(map(str, _REDIRECTS))}")
    return replies(Reply(status=status, headers=(("Location", settings.text("to", "/redirected")),)))


@fault("It sets a cookie. A good sender sends none back.", expects="success", status=STATUS)
def _set_cookie(settings: Settings) -> Behaviour:
    cookie = ("Set-Cookie", "conformance=kept; Path=/; Max-Age=3600")
    return replies(Reply(status=status_of(settings, 200), headers=(cookie,)))


@fault(
    "It asks, by the header `webhook-delivery: disable`, to be sent nothing more.",
    expects="http_error",
    status="the status (500)",
)
def _disable(settings: Settings) -> Behaviour:
    return replies(Reply(status=status_of(settings, 500), headers=(("webhook-delivery", "disable"),)))


@fault(
    "It asks, by the header `webhook-delivery: abort-message`, not to be sent this message again.",
    expects="http_error",
    status="the status (500)",
)
def _abort_message(settings: Settings) -> Behaviour:
    return replies(Reply(status=status_of(settings, 500), headers=(("webhook-delivery", "abort-message"),)))
