"""What probes a receiver: makes good messages, tampers with them, sends them, and keeps what was seen."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import math
import re
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from dispatcher.conformance.receiver_examination import caller
from dispatcher.conformance.receiver_examination.caller import Address, Answer, Connection
from dispatcher.conformance.results import Attempt
from dispatcher.conformance.signatures import schemes
from dispatcher.conformance.signatures.schemes import Key
from dispatcher.conformance.wire.requests import Headers
from dispatcher.errors import ConfigError

#: how often a message was processed, by its id
Effects = Callable[[str], Awaitable[int]]

#: schemes whose signature covers the time, those that state one at all, and those whose signature covers the id
SIGNED_TIME = frozenset({"standard", "standard-ed25519", "rfc9421", "rfc9421-ed25519"})
STATED_TIME = SIGNED_TIME | {"timestamped"}
SIGNED_ID = SIGNED_TIME
#: schemes whose header takes several signatures
MANY_SIGNATURES = frozenset({"standard", "standard-ed25519"})
#: schemes that write hexadecimal digits
IN_HEX = frozenset({"websub", "github", "timestamped", "servicestack"})
#: schemes that sign with a key pair
ASYMMETRIC = frozenset({"standard-ed25519", "rfc9421-ed25519"})

SIGNATURE_HEADERS = frozenset(
    {"x-hub-signature", "x-hub-signature-256", "x-webhook-signature", "webhook-signature", "signature"}
)
#: what signing adds besides
MADE_BY_SCHEMES = frozenset({"signature-input", "content-digest", "webhook-id", "webhook-timestamp"})
_IN_BASE64 = frozenset({"webhook-signature", "signature"})

#: headers that the probe writes itself, well or badly
_FRAMING = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "content-type"})

#: attempts that a scenario's timeline keeps
_MAX_ATTEMPTS = 400
#: seconds between looks at what a message did, and between the first effect and the last look for a second one
_LOOK_EVERY = 0.02
_GRACE = 0.15
#: shorter texts are found anywhere by chance
_SHORTEST_SECRET = 8
_SECRET_HEADER = re.compile(r"secret|token|authorization|cookie|key", re.IGNORECASE)

#: what interpreters and frameworks print when something breaks. It is looked for in whatever a stranger answers, so
#: that no part may begin anew at each character of a long run
_TRACES = re.compile(
    r"Traceback \(most recent call last\)|\bFile \"[^\"\n]+\", line \d+|^[ \t]+at [\w$.<>]+ ?\([^)\n]*:\d+(:\d+)?\)"
    r"|Exception in thread|\bgoroutine \d+ \[|#\d+ /[\w./-]+\.php|\.rb:\d+:in |panicked at |Werkzeug Debugger"
    r"|at [\w.]+\([\w.]+\.java:\d+\)|\b\w+\.py\", line \d+",
    re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A receiver under test. Its `repr` shows no secret. Raises ConfigError where it cannot be used."""

    #: http or https, with its path and query; the only address that is dialled
    url: str = field(repr=False)
    #: what the receiver is to verify; each message is signed by all of them
    schemes: tuple[str, ...]
    key: Key
    #: further headers of each request, such as a shared secret
    headers: Headers = field(default=(), repr=False)
    #: seconds that a timestamp may be off, either way
    tolerance: float = 300.0
    #: the hash of `websub`
    hub_method: str = "sha256"
    #: `keyid` of RFC 9421
    key_id: str = ""
    #: a body that the receiver takes: a JSON object; a text `probe` is added to it. None: a made-up event
    payload: dict[str, object] | None = field(default=None, repr=False)
    event: str = "probe.sent"
    #: of the payload
    content_type: str = "application/json"
    #: seconds for one request, dialling and answer included
    deadline: float = 10.0
    #: seconds within which a good request is to be answered
    prompt: float = 5.0
    #: seconds after which a request that stalls is to be given up by the receiver; 0: not looked at
    patience: float = 0.0
    #: bytes of a body that a receiver need not take
    too_large: int = 10 * 1_048_576
    #: the server's certificate is checked
    is_verified: bool = True
    #: path of a PEM file with the authorities to trust instead of the system's
    authority: str | None = field(default=None, repr=False)
    #: tells how often a message was processed; without it only answers can be looked at
    effects: Effects | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_url(self.url)
        unknown = [name for name in self.schemes if name not in schemes.SCHEMES]
        if unknown or not self.schemes:
            raise ConfigError(f"Name one or more of the schemes {', '.join(schemes.SCHEMES)}.")
        _check_headers(self.headers, self.content_type, self.event)
        try:
            json.dumps(self.payload, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ConfigError("The target's payload cannot be written as JSON.") from None
        for name in ("deadline", "prompt", "tolerance", "too_large"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"The target's {name} is a number greater than zero.")
        if not 0 <= self.patience < math.inf:
            raise ConfigError("The target's patience is a number of seconds, or 0.")

    @property
    def origin(self) -> str:
        """Scheme, host and port: what may be shown of the URL."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def request_target(self) -> str:
        """What stands in the request line."""
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    @property
    def is_local(self) -> bool:
        """It is on this machine."""
        host = urlsplit(self.url).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def address(self) -> Address:
        """Where to dial. Raises ConfigError if the authorities cannot be read."""
        parts = urlsplit(self.url)
        tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                tls = ssl.create_default_context(cafile=self.authority)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError("The file of trusted authorities cannot be read as PEM.") from error
            if not self.is_verified:
                tls.check_hostname = False
                tls.verify_mode = ssl.CERT_NONE
        return Address(host=parts.hostname or "", port=parts.port or (443 if tls else 80), tls=tls)


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """A request in the making; what is done to it after it was signed is tampering."""

    method: str = "POST"
    id: str
    timestamp: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    def without(self, *names: str) -> Message:
        """The same without some headers (lower case)."""
        return replace(self, headers=tuple(one for one in self.headers if one[0].lower() not in names))

    def having(self, *headers: tuple[str, str]) -> Message:
        """The same with some headers, in place of those of the same name."""
        kept = self.without(*(name.lower() for name, _value in headers))
        return replace(kept, headers=(*kept.headers, *headers))

    def header(self, name: str) -> str:
        """The first value of a header; empty if there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    @property
    def signatures(self) -> Headers:
        """Its headers that hold signatures."""
        return tuple(one for one in self.headers if one[0].lower() in SIGNATURE_HEADERS)

    def with_digests(self, change: Callable[[bytes], bytes]) -> Message:
        """The same with each signature's bytes changed, and its form kept."""
        return self._with_signatures(lambda name, text: _written(name, change(_read(name, text))))

    def with_digest_texts(self, change: Callable[[str], str]) -> Message:
        """The same with each signature's text changed; the label before it stays."""
        return self._with_signatures(lambda _name, text: change(text))

    def digests(self) -> list[str]:
        """The texts of its signatures, without labels."""
        found: list[str] = []

        def kept(text: str) -> str:
            found.append(text)
            return text

        for name, value in self.signatures:
            _reworked(name, value, kept)
        return found

    def _with_signatures(self, change: Callable[[str, str], str]) -> Message:
        def changed(name: str, value: str) -> tuple[str, str]:
            if name.lower() not in SIGNATURE_HEADERS:
                return name, value
            return name, _reworked(name, value, lambda text: change(name, text))

        return replace(self, headers=tuple(changed(*one) for one in self.headers))


class TooManyRequests(Exception):
    """The receiver answered 429: what else it would have answered cannot be seen."""


class Attacker:
    """Sends messages to one target and keeps what was seen."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.schemes = frozenset(target.schemes)
        #: in all payloads of this probe, so that it can be found in answers
        self.marker = "probe" + secrets.token_hex(12)
        self.address = target.address()
        #: what the answers showed that they must not, by kind: "secret", "trace", "payload"
        self.leaks: dict[str, str] = {}
        self.attempts: list[Attempt] = []
        self._numbers: dict[str, int] = {}
        self._started = time.monotonic()
        self._known_secrets = _secrets_of(target)
        # also finds out early that the key cannot serve the schemes
        self.message()

    def begin_scenario(self) -> None:
        """Start another timeline."""
        self.attempts = []
        self._numbers = {}
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the scenario began."""
        return time.monotonic() - self._started

    # --- what is sent ------------------------------------------------------------------------------------

    def payload(self, **members: object) -> dict[str, object]:
        """A payload that the receiver takes, with these members besides."""
        made_up: dict[str, object] = {"type": self.target.event, "data": {"text": "a probe"}}
        return {**(self.target.payload or made_up), "probe": self.marker, **members}

    def message(
        self,
        body: bytes | None = None,
        *,
        id: str | None = None,  # noqa: A002  # the word of the specification
        age: float = 0.0,
        method: str = "POST",
        event: str | None = None,
        content_type: str | None = None,
        headers: Headers = (),
        key: Key | None = None,
        hub_method: str | None = None,
    ) -> Message:
        """A message with good signatures, of now or `age` seconds old. Raises ConfigError if the key cannot sign it."""
        message_id = id if id is not None else "probe_" + secrets.token_hex(12)
        content = encoded(self.payload()) if body is None else body
        timestamp = int(time.time() - age)
        name = event or self.target.event
        stated = (
            ("Content-Type", content_type or self.target.content_type),
            ("User-Agent", "webhook-dispatcher-probe"),
            ("X-Webhook-Delivery", message_id),
            ("X-Webhook-Attempt", "1"),
            ("X-Webhook-Event", name),
            ("X-Webhook-Timestamp", str(timestamp)),
            *((("X-GitHub-Delivery", message_id), ("X-GitHub-Event", name)) if "github" in self.schemes else ()),
            *headers,
        )
        message = Message(method=method, id=message_id, timestamp=timestamp, headers=(), body=content)
        message = message.having(*stated).having(*self.target.headers)
        return self.signed(message, key=key, hub_method=hub_method)

    def signed(self, message: Message, *, key: Key | None = None, hub_method: str | None = None) -> Message:
        """The same message with good signatures. Raises ConfigError if the key cannot sign it."""
        stated = message.without(*SIGNATURE_HEADERS, *MADE_BY_SCHEMES)
        added: dict[str, tuple[str, str]] = {}
        for scheme in self.target.schemes:
            made = schemes.sign(
                scheme,
                key or self.target.key,
                method=message.method,
                url=self.target.origin + self.target.request_target,
                headers=stated.headers,
                body=message.body,
                message_id=message.id,
                timestamp=message.timestamp,
                hub_method=hub_method or self.target.hub_method,
                key_id=self.target.key_id,
            )
            for name, value in made:
                known = added.get(name.lower(), (name, value))[1]
                if known == value:
                    added[name.lower()] = (name, value)
                elif name.lower() == "webhook-signature":
                    # the one header that several schemes share
                    added[name.lower()] = (name, f"{known} {value}")
                else:
                    raise ConfigError(f"Two of the schemes write {name}: use one of them.")
        return stated.having(*added.values())

    def other_key(self) -> Key:
        """A key of the same kind that is not the receiver's."""
        text = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode("ascii")
        return Key(secret=text, seed=secrets.token_bytes(32))

    def head(self, message: Message, *framing: tuple[str, str], method: str | None = None) -> bytes:
        """The request line and the headers, with these instead of a Content-Length."""
        host = urlsplit(self.target.url).netloc
        lines = [f"{method or message.method} {self.target.request_target} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in (*message.headers, *framing)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def raw(self, message: Message, *framing: tuple[str, str]) -> bytes:
        """The whole request in good HTTP, as far as the message's headers are."""
        return self.head(message, ("Content-Length", str(len(message.body))), *framing) + message.body

    # --- sending it --------------------------------------------------------------------------------------

    async def send(self, message: Message) -> Answer:
        """Send a message over a connection of its own. Raises TooManyRequests."""
        return await self.send_raw(message, self.raw(message, ("Connection", "close")))

    async def send_raw(self, message: Message, data: bytes | Iterable[bytes]) -> Answer:
        """Send these bytes, made of a message, over a connection of their own. Raises TooManyRequests."""

        async def talk(connection: Connection) -> Answer:
            return await connection.exchange(data)

        return await self.converse(message, talk)

    async def converse(
        self, message: Message, talk: Callable[[Connection], Awaitable[Answer]], *, within: float | None = None
    ) -> Answer:
        """Dial, do this, hang up, all within the deadline (seconds). Raises TooManyRequests."""
        started, after = time.monotonic(), self.elapsed
        answer = Answer(trouble="timeout")
        try:
            async with asyncio.timeout(within or self.target.deadline):
                dialled = await caller.dial(self.address)
                if isinstance(dialled, Answer):
                    answer = dialled
                else:
                    async with dialled:
                        answer = replace(await talk(dialled), seconds=time.monotonic() - started)
        except TimeoutError:
            pass  # it stays "timeout"
        if not answer.seconds:
            answer = replace(answer, seconds=time.monotonic() - started)
        self.note(message, answer, after=after)
        return answer

    def note(self, message: Message, answer: Answer, *, after: float | None = None) -> None:
        """Keep what was seen. Raises TooManyRequests."""
        number = self._numbers.setdefault(message.id, len(self._numbers) + 1)
        if len(self.attempts) < _MAX_ATTEMPTS:
            when = self.elapsed if after is None else after
            self.attempts.append(Attempt(after=round(when, 4), answer=answer.name, message=number))
        self._look_for_leaks(message, answer)
        if answer.status == 429:
            raise TooManyRequests

    async def times_processed(self, message: Message, *, at_least: int = 1) -> int | None:
        """How often the message was processed, once it was so often or time is up; None if nobody can tell."""
        if self.target.effects is None:
            return None
        until = time.monotonic() + min(self.target.deadline, 2.0)
        count = await self.target.effects(message.id)
        while count < at_least and time.monotonic() < until:
            await asyncio.sleep(_LOOK_EVERY)
            count = await self.target.effects(message.id)
        # one too many may come a little later
        await asyncio.sleep(_GRACE)
        return await self.target.effects(message.id)

    # --- what answers must not show ----------------------------------------------------------------------

    def _look_for_leaks(self, message: Message, answer: Answer) -> None:
        if answer.status is None:
            return
        headers = "\n".join(f"{name}: {value}" for name, value in answer.headers)
        text = headers + "\n" + answer.body.decode("utf-8", "replace")
        if any(secret in text for secret in self._known_secrets):
            self.leaks.setdefault("secret", f"The answer {answer.status} holds the secret.")
        elif any(digest in text for digest in self._right_digests(message)):
            self.leaks.setdefault(
                "secret",
                f"The answer {answer.status} tells the signature that would have been right:"
                " anyone can sign with its help.",
            )
        if _TRACES.search(text):
            self.leaks.setdefault("trace", f"The answer {answer.status} holds what looks like a stack trace.")
        if not answer.is_success and self.marker in text:
            self.leaks.setdefault("payload", f"The answer {answer.status} repeats what was sent.")

    def _right_digests(self, message: Message) -> list[str]:
        """Signatures that would have been right and were not sent."""
        if len(message.body) > caller.MAX_BODY:
            return []
        try:
            right = self.signed(message).digests()
        except (ConfigError, ValueError):
            return []
        sent = "\n".join(value for _name, value in message.headers)
        return [digest for digest in right if digest not in sent]


def encoded(payload: object) -> bytes:
    """JSON as most senders write it: without spaces."""
    return json.dumps(payload, separators=(",", ":")).encode()


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"[^\x21-\x7e]", url):
        raise ConfigError("The receiver's URL is an http or https URL in ASCII, with a host.")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("The receiver's URL has a user name or password in it: send them as a header.")


def _check_headers(headers: Headers, content_type: str, event: str) -> None:
    for name, _value in headers:
        if name.lower() in _FRAMING:
            raise ConfigError(f"The header {name} is the probe's own: leave it out of the target's.")
    for name, value in (*headers, ("Content-Type", content_type), ("X-Webhook-Event", event)):
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[^\t\x20-\x7e\x80-\xff]", value):
            raise ConfigError("A header of the target is not one that HTTP can carry.")


def _secrets_of(target: Target) -> tuple[str, ...]:
    """Texts that no answer may hold."""
    texts = [target.key.secret, target.key.secret.removeprefix("whsec_")]
    texts += [value for name, value in target.headers if _SECRET_HEADER.search(name)]
    return tuple(text for text in texts if len(text) >= _SHORTEST_SECRET)


# --- signatures as texts --------------------------------------------------------------------------------


def _reworked(name: str, value: str, change: Callable[[str], str]) -> str:
    """A signature header with the text of its digests changed and everything around them kept."""
    if name.lower() == "webhook-signature":
        tokens = (token.partition(",") for token in value.split(" "))
        return " ".join(label + comma + change(digest) for label, comma, digest in tokens)
    if name.lower() == "signature":
        return re.sub(r":([A-Za-z0-9+/=]*):", lambda found: f":{change(found[1])}:", value)
    label, sign, digest = value.rpartition("=")
    return label + sign + change(digest)


def _read(name: str, text: str) -> bytes:
    return base64.b64decode(text) if name.lower() in _IN_BASE64 else bytes.fromhex(text)


def _written(name: str, digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii") if name.lower() in _IN_BASE64 else digest.hex()
