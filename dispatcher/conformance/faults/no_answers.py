"""No answer, or a head that is none."""

from __future__ import annotations

from dispatcher.conformance.faults.behaviours import (
    OK_HEAD,
    floods,
    one_by_one,
    sends_and_stays,
    status_line,
    within,
)
from dispatcher.conformance.faults.fault import (
    EVERY,
    FOR,
    PAUSE,
    STATUS,
    Settings,
    fault,
    seconds_of,
    status_of,
)
from dispatcher.conformance.wire.exchange import Behaviour, Exchange
from dispatcher.errors import ConfigError


@fault("It takes the request and never answers.", expects="timeout", for_=FOR)
def _hang(settings: Settings) -> Behaviour:
    seconds = seconds_of(settings, "for", 60.0)

    async def behave(exchange: Exchange) -> None:
        await exchange.until_gone(seconds)
        await exchange.close()

    return behave


@fault("It closes the connection before any byte of an answer.", expects="connection_error")
def _close(_settings: Settings) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.close()

    return behave


@fault("It resets the connection before any byte of an answer.", expects="connection_error")
def _reset(_settings: Settings) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        exchange.reset()

    return behave


@fault("It sends the head one byte at a time.", expects="timeout", every=f"{EVERY} (1)", status=STATUS, for_=FOR)
def _slow_headers(settings: Settings) -> Behaviour:
    every = seconds_of(settings, "every", 1.0)
    head = status_line(status_of(settings, 200)) + b"Content-Length: 2\r\nConnection: close\r\n\r\n"

    async def act(exchange: Exchange) -> None:
        if await one_by_one(exchange, head, every):
            await exchange.send(b"ok")
            await exchange.close()

    return within(settings, act)


@fault(
    "It sends headers for ever.",
    expects="protocol_error",
    size="bytes, at most (104857600)",
    pause=PAUSE,
    for_=FOR,
)
def _endless_headers(settings: Settings) -> Behaviour:
    lines = b"".join(b"X-Header-%04d: %s\r\n" % (number, b"a" * 40) for number in range(1_000))
    return floods(settings, OK_HEAD, lines)


@fault(
    "It sends interim answers (1xx) for ever.",
    expects="protocol_error",
    status="100, 102 or 103, say (103)",
    size="bytes, at most (104857600)",
    pause=PAUSE,
    for_=FOR,
)
def _interim_flood(settings: Settings) -> Behaviour:
    # 101 ends the conversation in HTTP
    status = settings.whole("status", 103, low=100, high=199)
    if status == 101:
        raise ConfigError("'status' has to be an interim one, 101 is none")
    return floods(settings, b"", (status_line(status) + b"\r\n") * 100)


@fault("It speaks another protocol.", expects="protocol_error", for_=FOR)
def _garbage(settings: Settings) -> Behaviour:
    return sends_and_stays(settings, b"SSH-2.0-OpenSSH_9.7\r\n\x00\x01\x02\xfe\xff\r\n\r\n")


@fault("It answers as HTTP/0.9 did: a body without a head.", expects="protocol_error", for_=FOR)
def _http09(settings: Settings) -> Behaviour:
    return sends_and_stays(settings, b"<html>ok</html>\r\n\r\n")


@fault(
    "It answers in a version of HTTP that is not spoken here.",
    expects="protocol_error",
    version="such as 7.3, which the clients' libraries tend to take (2)",
    for_=FOR,
)
def _odd_version(settings: Settings) -> Behaviour:
    version = settings.text("version", "2").encode()
    return sends_and_stays(settings, b"HTTP/" + version + b" 200 OK\r\nContent-Length: 2\r\n\r\nok")


@fault("It names two lengths for one body, as those do who smuggle answers.", expects="protocol_error", for_=FOR)
def _two_lengths(settings: Settings) -> Behaviour:
    return sends_and_stays(settings, OK_HEAD + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\nok")
