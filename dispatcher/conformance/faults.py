"""What endpoints do wrong, one fault each, and scripts that say which comes when.

A fault writes exact bytes, so that a test can name what the sender saw. None goes on for ever: each ends with the
connection, and after `for` seconds at the latest.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import hashlib
import math
import random
import re
import time
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate

from dispatcher.conformance.requests import Headers, Received, Reply
from dispatcher.conformance.wire import Behaviour, Exchange
from dispatcher.errors import ConfigError

__all__ = ["FAULTS", "Fault", "Script", "Step"]

#: how many deliveries a script counts; then it forgets the one that was not heard of for longest
_MAX_COUNTED = 10_000
_MEBIBYTE = 1024 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_OK_HEAD = b"HTTP/1.1 200 OK\r\n"
_OK = _OK_HEAD + b"Content-Length: 2\r\n\r\nok"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One way to answer badly, or oddly."""

    name: str
    #: a sentence: what the endpoint does
    title: str
    #: what a good sender records: one of our outcome words; empty where the draw decides. Where the head arrives whole
    #: the status says what became of the message, whatever the body does: another `status` than the usual one may turn
    #: `success` into `http_error` or back
    expects: str
    #: makes the behaviour from its settings as they are written. Raises ConfigError, which names the setting that is
    #: wrong and never its value
    make: Callable[[Mapping[str, str]], Behaviour] = field(repr=False)
    #: what can be set: name and meaning
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One answer of a script; itself a behaviour."""

    #: the name of the fault, or the status: "drip", "429"
    name: str
    #: None: the endpoint does nothing wrong
    fault: Fault | None
    behaviour: Behaviour | None = field(repr=False)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer."""
        if self.behaviour is None:
            await exchange.reply(Reply())
        else:
            await self.behaviour(exchange)


# --- settings ---------------------------------------------------------------------------------------------


class _Settings:
    """The settings of a fault as they are written, read one by one."""

    def __init__(self, written: Mapping[str, str]) -> None:
        self._written = written

    def text(self, name: str, default: str) -> str:
        """A text that can stand in a header."""
        value = self._written.get(name, default)
        if not value.isprintable() or not value.isascii():
            raise ConfigError(f"'{name}' has to be printable ASCII")
        return value

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number in these bounds."""
        try:
            value = float(self._written.get(name, default))
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ConfigError(f"'{name}' has to be a number from {low:g} to {high:g}")
        return value

    def whole(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number in these bounds."""
        value = self._written.get(name, str(default))
        if not re.fullmatch(r"-?[0-9]{1,12}", value) or not low <= int(value) <= high:
            raise ConfigError(f"'{name}' has to be a whole number from {low} to {high}")
        return int(value)

    def has(self, name: str) -> bool:
        """Whether it is written."""
        return name in self._written


def _seconds(settings: _Settings, name: str, default: float) -> float:
    return settings.number(name, default, low=0, high=3_600)


def _status(settings: _Settings, default: int) -> int:
    return settings.whole("status", default, low=200, high=999)


_Make = Callable[[_Settings], Behaviour]

#: all faults by name
FAULTS: dict[str, Fault] = {}


def _fault(title: str, *, expects: str, **settings: str) -> Callable[[_Make], _Make]:
    """Make a fault of a function, named after it. `for_` names the setting `for`, `retry_after` `retry-after`."""

    def register(build: _Make) -> _Make:
        name = build.__name__.strip("_").replace("_", "-")
        known = {key.rstrip("_").replace("_", "-"): meaning for key, meaning in settings.items()}

        def make(written: Mapping[str, str]) -> Behaviour:
            for key in written:
                if key not in known:
                    having = f"it has {', '.join(known)}" if known else "it has none"
                    raise ConfigError(f"there is no setting {_show(key)}; {having}")
            return build(_Settings(written))

        FAULTS[name] = Fault(name=name, title=title, expects=expects, make=make, settings=known)
        return build

    return register


def _show(text: str) -> str:
    """A name as it may stand in an error text."""
    return ascii(text if len(text) <= 40 else text[:40] + "…")


_FOR = "seconds after which it ends at the latest (60)"
_EVERY = "seconds between one byte and the next"
_PAUSE = "seconds between one piece, of some KiB, and the next (0)"
_STATUS = "the status (200)"


def _within(settings: _Settings, act: Callable[[Exchange], Awaitable[None]]) -> Behaviour:
    """The same behaviour, and an orderly close when `for` is over."""
    seconds = _seconds(settings, "for", 60.0)

    async def behave(exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(seconds):
                await act(exchange)
        except TimeoutError:
            await exchange.close()

    return behave


def _sends(data: bytes) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.send(data)
        await exchange.close()

    return behave


def _sends_and_stays(settings: _Settings, data: bytes) -> Behaviour:
    """Send, and leave it to the peer to end what makes no sense: a close of ours might be all that it notices."""
    seconds = _seconds(settings, "for", 60.0)

    async def behave(exchange: Exchange) -> None:
        await exchange.send(data)
        await exchange.until_gone(seconds)
        await exchange.close()

    return behave


def _replies(reply: Reply) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.reply(reply)

    return behave


def _line(status: int) -> bytes:
    """A status line; a reason is not needed."""
    return _OK_HEAD if status == 200 else b"HTTP/1.1 %d \r\n" % status


async def _one_by_one(exchange: Exchange, data: bytes, every: float) -> bool:
    """Send byte by byte; whether the peer stayed to the end."""
    for at in range(len(data)):
        if at and await exchange.until_gone(every):
            return False
        await exchange.send(data[at : at + 1])
    return True


async def _stream(exchange: Exchange, settings: _Settings, piece: bytes, size: int) -> None:
    """The piece again and again, `size` bytes in all."""
    pause = _seconds(settings, "pause", 0.0)
    for at in range(0, size, len(piece)):
        await exchange.send(piece[: size - at])
        if pause:
            await asyncio.sleep(pause)


# --- answers in good HTTP ---------------------------------------------------------------------------------


@_fault(
    "It answers with this status.",
    expects="http_error",
    code="the status, 100 to 999 (500)",
    retry_after="seconds for the Retry-After header",
    retry_after_date="the same as a date, so many seconds ahead; below 0 in the past",
    retry_after_raw="any text for the Retry-After header",
    body="a text for the body",
)
def _status_(settings: _Settings) -> Behaviour:
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
        return _sends(b"".join([_line(code), *(f"{name}: {value}\r\n".encode() for name, value in fixed), b"\r\n"]))

    async def behave(exchange: Exchange) -> None:
        headers = fixed
        if settings.has("retry-after-date"):
            # up to the whole second: a date has no smaller parts, and it is not to name less than was asked for
            headers = (("Retry-After", formatdate(math.ceil(time.time() + ahead), usegmt=True)),)
        await exchange.reply(Reply(status=code, headers=headers, body=body))

    return behave


@_fault(
    "It answers in good HTTP, but late.",
    expects="timeout",
    after="seconds until it answers (30)",
    status=_STATUS,
)
def _late(settings: _Settings) -> Behaviour:
    after, reply = _seconds(settings, "after", 30.0), Reply(status=_status(settings, 200))

    async def behave(exchange: Exchange) -> None:
        if not await exchange.until_gone(after):
            await exchange.reply(reply)

    return behave


@_fault(
    "It redirects to another place. A good sender goes nowhere it was not told to by its owner.",
    expects="http_error",
    to="the Location (/redirected)",
    status="301, 302, 303, 307 or 308 (302)",
)
def _redirect(settings: _Settings) -> Behaviour:
    status = settings.whole("status", 302, low=301, high=308)
    if status not in _REDIRECTS:
        raise ConfigError(f"'status' has to be one of {', '.join(map(str, _REDIRECTS))}")
    return _replies(Reply(status=status, headers=(("Location", settings.text("to", "/redirected")),)))


@_fault("It sets a cookie. A good sender sends none back.", expects="success", status=_STATUS)
def _set_cookie(settings: _Settings) -> Behaviour:
    cookie = ("Set-Cookie", "conformance=kept; Path=/; Max-Age=3600")
    return _replies(Reply(status=_status(settings, 200), headers=(cookie,)))


@_fault(
    "It asks, by the header `webhook-delivery: disable`, to be sent nothing more.",
    expects="http_error",
    status="the status (500)",
)
def _disable(settings: _Settings) -> Behaviour:
    return _replies(Reply(status=_status(settings, 500), headers=(("webhook-delivery", "disable"),)))


@_fault(
    "It asks, by the header `webhook-delivery: abort-message`, not to be sent this message again.",
    expects="http_error",
    status="the status (500)",
)
def _abort_message(settings: _Settings) -> Behaviour:
    return _replies(Reply(status=_status(settings, 500), headers=(("webhook-delivery", "abort-message"),)))


# --- no answer --------------------------------------------------------------------------------------------


@_fault("It takes the request and never answers.", expects="timeout", for_=_FOR)
def _hang(settings: _Settings) -> Behaviour:
    seconds = _seconds(settings, "for", 60.0)

    async def behave(exchange: Exchange) -> None:
        await exchange.until_gone(seconds)
        await exchange.close()

    return behave


@_fault("It closes the connection before any byte of an answer.", expects="connection_error")
def _close(_settings: _Settings) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.close()

    return behave


@_fault("It resets the connection before any byte of an answer.", expects="connection_error")
def _reset(_settings: _Settings) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        exchange.reset()

    return behave


@_fault("It sends the head one byte at a time.", expects="timeout", every=f"{_EVERY} (1)", status=_STATUS, for_=_FOR)
def _slow_headers(settings: _Settings) -> Behaviour:
    every = _seconds(settings, "every", 1.0)
    head = _line(_status(settings, 200)) + b"Content-Length: 2\r\nConnection: close\r\n\r\n"

    async def act(exchange: Exchange) -> None:
        if await _one_by_one(exchange, head, every):
            await exchange.send(b"ok")
            await exchange.close()

    return _within(settings, act)


@_fault(
    "It sends headers for ever.",
    expects="protocol_error",
    size="bytes, at most (104857600)",
    pause=_PAUSE,
    for_=_FOR,
)
def _endless_headers(settings: _Settings) -> Behaviour:
    size = settings.whole("size", 100 * _MEBIBYTE, low=0, high=10**10)
    lines = b"".join(b"X-Header-%04d: %s\r\n" % (number, b"a" * 40) for number in range(1_000))

    async def act(exchange: Exchange) -> None:
        await exchange.send(_OK_HEAD)
        await _stream(exchange, settings, lines, size)
        await exchange.close()

    return _within(settings, act)


@_fault(
    "It sends interim answers (1xx) for ever.",
    expects="protocol_error",
    status="100, 102 or 103, say (103)",
    size="bytes, at most (104857600)",
    pause=_PAUSE,
    for_=_FOR,
)
def _interim_flood(settings: _Settings) -> Behaviour:
    # 101 ends the conversation in HTTP
    status = settings.whole("status", 103, low=100, high=199)
    if status == 101:
        raise ConfigError("'status' has to be an interim one, 101 is none")
    size = settings.whole("size", 100 * _MEBIBYTE, low=0, high=10**10)
    answers = (_line(status) + b"\r\n") * 100

    async def act(exchange: Exchange) -> None:
        await _stream(exchange, settings, answers, size)
        await exchange.close()

    return _within(settings, act)


@_fault("It speaks another protocol.", expects="protocol_error", for_=_FOR)
def _garbage(settings: _Settings) -> Behaviour:
    return _sends_and_stays(settings, b"SSH-2.0-OpenSSH_9.7\r\n\x00\x01\x02\xfe\xff\r\n\r\n")


@_fault("It answers as HTTP/0.9 did: a body without a head.", expects="protocol_error", for_=_FOR)
def _http09(settings: _Settings) -> Behaviour:
    return _sends_and_stays(settings, b"<html>ok</html>\r\n\r\n")


@_fault(
    "It answers in a version of HTTP that is not spoken here.",
    expects="protocol_error",
    version="such as 7.3, which the clients' libraries tend to take (2)",
    for_=_FOR,
)
def _odd_version(settings: _Settings) -> Behaviour:
    version = settings.text("version", "2").encode()
    return _sends_and_stays(settings, b"HTTP/" + version + b" 200 OK\r\nContent-Length: 2\r\n\r\nok")


@_fault("It names two lengths for one body, as those do who smuggle answers.", expects="protocol_error", for_=_FOR)
def _two_lengths(settings: _Settings) -> Behaviour:
    return _sends_and_stays(settings, _OK_HEAD + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\nok")


# --- a good head, and trouble with the body ---------------------------------------------------------------


@_fault(
    "It sends the body one byte at a time, for ever.",
    expects="success",
    every=f"{_EVERY} (1)",
    status=_STATUS,
    for_=_FOR,
)
def _drip(settings: _Settings) -> Behaviour:
    every = _seconds(settings, "every", 1.0)
    head = _line(_status(settings, 200)) + b"Content-Type: text/plain\r\nConnection: close\r\n\r\n"

    async def act(exchange: Exchange) -> None:
        await exchange.send(head)
        while not await exchange.until_gone(every):
            await exchange.send(b".")

    return _within(settings, act)


@_fault("It closes the connection in the middle of the body.", expects="success", status=_STATUS)
def _cut(settings: _Settings) -> Behaviour:
    return _sends(_line(_status(settings, 200)) + b"Content-Length: 1000\r\n\r\n" + b"." * 500)


@_fault(
    "Its body is small, and unpacks to a huge one. A good sender does not unpack it.",
    expects="success",
    size="bytes that it unpacks to (10485760)",
    status=_STATUS,
)
def _gzip_bomb(settings: _Settings) -> Behaviour:
    size = settings.whole("size", 10 * _MEBIBYTE, low=0, high=1_000 * _MEBIBYTE)
    status = _status(settings, 200)

    async def behave(exchange: Exchange) -> None:
        packed = await asyncio.to_thread(_pack_zeros, size)
        head = _line(status) + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        await exchange.send(head + packed)
        await exchange.close()

    return behave


@functools.lru_cache(maxsize=4)
def _pack_zeros(size: int) -> bytes:
    """So many zeros, gzipped; the same bytes each time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(_MEBIBYTE)
    parts = [packer.compress(zeros[: size - at]) for at in range(0, size, _MEBIBYTE)]
    return b"".join([*parts, packer.flush()])


@_fault(
    "Its body is huge. A good sender stops reading.",
    expects="success",
    size="bytes (104857600)",
    status=_STATUS,
    pause=_PAUSE,
    for_=_FOR,
)
def _huge(settings: _Settings) -> Behaviour:
    size = settings.whole("size", 100 * _MEBIBYTE, low=0, high=10**10)
    head = _line(_status(settings, 200)) + b"Content-Length: %d\r\n\r\n" % size

    async def act(exchange: Exchange) -> None:
        await exchange.send(head)
        await _stream(exchange, settings, b"." * 65_536, size)
        await exchange.close()

    return _within(settings, act)


@_fault(
    "Its body is shorter than it says, or longer.",
    expects="success",
    by="bytes that are missing; below 0: that are too many (5)",
    status=_STATUS,
)
def _wrong_length(settings: _Settings) -> Behaviour:
    by = settings.whole("by", 5, low=-1_000_000, high=1_000_000)
    said = max(by, 0) + 10
    return _sends(_line(_status(settings, 200)) + b"Content-Length: %d\r\n\r\n" % said + b"." * (said - by))


@_fault("Its body comes in chunks that are none.", expects="success", status=_STATUS)
def _chunked_junk(settings: _Settings) -> Behaviour:
    head = _line(_status(settings, 200)) + b"Transfer-Encoding: chunked\r\n\r\n"
    return _sends(head + b"2\r\nok\r\nZZZ\r\nnot a chunk\r\n0\r\n\r\n")


@_fault(
    "It sends a second answer that nobody asked for, and leaves the connection open. A good sender does not use it "
    "again: the second answer would be taken for that to the next request.",
    expects="success",
    status="the status of the second answer (500)",
    for_=_FOR,
)
def _second_answer(settings: _Settings) -> Behaviour:
    second = _line(_status(settings, 500)) + b"Content-Length: 6\r\n\r\nsecond"
    return _sends_and_stays(settings, _OK + second)


# --- faults that come and go ------------------------------------------------------------------------------


class _Changing:
    """A behaviour that is another one each time."""

    def __init__(self, draw: Callable[[], Step]) -> None:
        #: what comes next
        self.draw = draw

    async def __call__(self, exchange: Exchange) -> None:
        await self.draw()(exchange)


@_fault(
    "It is up and down in turn, whoever asks.",
    expects="",
    up="requests that are answered well (3)",
    down="requests that then are not (2)",
    status="the status while it is down (503)",
)
def _flap(settings: _Settings) -> Behaviour:
    up = settings.whole("up", 3, low=0, high=1_000_000)
    down = settings.whole("down", 2, low=0, high=1_000_000)
    if up + down == 0:
        raise ConfigError("'up' and 'down' cannot both be 0")
    steps = (_WELL, _step(str(_status(settings, 503)), {}))
    count = -1

    def draw() -> Step:
        nonlocal count
        count = (count + 1) % (up + down)
        return steps[count >= up]

    return _Changing(draw)


@_fault(
    "It draws lots: another fault each time, or none. The same seed draws the same.",
    expects="",
    seed="a whole number (0)",
    among="what is drawn from, such as ok/500/reset (ok/500/503/429/close/reset/cut/garbage/wrong-length)",
)
def _random(settings: _Settings) -> Behaviour:
    lots = random.Random(settings.whole("seed", 0, low=0, high=10**11))  # noqa: S311 - has to be repeatable
    names = settings.text("among", "ok/500/503/429/close/reset/cut/garbage/wrong-length").split("/")
    if {"random", "flap"} & set(names):
        raise ConfigError("'among' cannot have what draws itself")
    try:
        steps = [_step(name.strip(), {}) for name in names]
    except ConfigError as exc:
        raise ConfigError(f"'among': {exc}") from exc
    return _Changing(lambda: lots.choice(steps))


# --- scripts ----------------------------------------------------------------------------------------------

_WELL = Step(name="ok", fault=None, behaviour=None)


class Script:
    """What an endpoint answers: one step after the other, the last for ever.

    Steps stand between commas: a status, the name of a fault, or `ok`; each may have settings behind semicolons, whose
    values stand in double quotes where they hold one of those. `ok` and a bare `200` mean that nothing is wrong:
    `next` is then None, and the endpoint does what it does without a script.

    Requests are counted for each delivery by its id (X-Webhook-Delivery, else webhook-id; without any by path), with
    "path:" before the steps for each path. Of many deliveries, those not heard of for longest are forgotten, and
    begin anew. `flap` and `random` go on from request to request, whosever it is.
    """

    def __init__(self, steps: Sequence[Step], *, by_path: bool = False) -> None:
        self.steps = tuple(steps)
        self._by_path = by_path
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"Script({', '.join(step.name for step in self.steps)})"

    @classmethod
    def parse(cls, text: str) -> Script:
        """Read a script: "500,500,200", "429;retry-after=2,ok", "drip;every=0.2", "path:hang,ok".

        Raises:
            ConfigError: it names the part that is wrong, and what would be right; no value of a setting.
        """
        rest = text.strip()
        by_path = rest.startswith("path:")
        rest = rest.removeprefix("path:")
        if not rest.strip():
            raise ConfigError("the script is empty; it names statuses and faults, such as 500,500,200")
        if rest.count('"') % 2:
            raise ConfigError("the script has a double quote that is not closed")
        steps = []
        for number, part in enumerate(_split(rest, ","), start=1):
            try:
                steps.append(_parse_step(part))
            except ConfigError as exc:
                raise ConfigError(f"step {number} of the script: {exc}") from exc
        return cls(steps, by_path=by_path)

    def next(self, request: Received) -> Step | None:
        """What this request is answered; None: nothing is wrong. Each call counts."""
        key = self._key(request)
        at = self._counts.pop(key, 0)
        self._counts[key] = at + 1
        if len(self._counts) > _MAX_COUNTED:
            self._counts.popitem(last=False)
        step = self.steps[min(at, len(self.steps) - 1)]
        if isinstance(step.behaviour, _Changing):
            step = step.behaviour.draw()
        return None if step.behaviour is None else step

    def _key(self, request: Received) -> bytes:
        delivery = request.header("X-Webhook-Delivery") or request.header("webhook-id")
        kind, value = (b"delivery", delivery) if delivery and not self._by_path else (b"path", request.path)
        # a digest: however long the peer's id is, it takes the same room here
        return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16, person=kind).digest()


def _split(text: str, at: str) -> list[str]:
    """Its parts between these characters, but for those that stand in double quotes."""
    return [part.strip() for part in re.findall(rf'(?:^|{at})((?:[^{at}"]|"[^"]*")*)', text)]


def _parse_step(text: str) -> Step:
    name, *written = _split(text, ";")
    settings: dict[str, str] = {}
    for part in written:
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not key or not equals:
            raise ConfigError("a setting is written as name=value")
        if key in settings:
            raise ConfigError(f"the setting {_show(key)} stands there twice")
        match = re.fullmatch(r'"([^"]*)"|([^"]*)', value)
        if match is None:
            raise ConfigError(f"the value of {_show(key)} has a double quote within")
        settings[key] = match[1] or match[2] or ""
    return _step(name, settings)


def _step(name: str, settings: Mapping[str, str]) -> Step:
    if name in {"ok", "200"} and not settings:
        return _WELL
    if re.fullmatch(r"[1-9][0-9]{2}", name):
        if "code" in settings:
            raise ConfigError(f"{name}: the status is said twice")
        fault, settings = FAULTS["status"], {**settings, "code": name}
    elif name in FAULTS:
        fault = FAULTS[name]
    else:
        near = difflib.get_close_matches(name[:40], FAULTS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FAULTS)}, any status, and ok"
        raise ConfigError(f"there is no fault {_show(name)}; {hint}")
    try:
        behaviour = fault.make(settings)
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc}") from exc
    return Step(name=name, fault=fault, behaviour=behaviour)
