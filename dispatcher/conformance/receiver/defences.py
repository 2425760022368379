"""A hardened webhook handler, as decisions that can be looked at: one small function for each defence.

Each is asked in the order of `DEFENCES`, and the first refusal is the answer. What the sender is told names the defence
and repeats no value that it sent; nor does the reason for the owner.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from dispatcher.conformance.receiver.addresses import Address, client_address, is_within, parse_address, parse_networks
from dispatcher.conformance.receiver.callbacks import CallbackRefused, Claims
from dispatcher.conformance.receiver.event_schemas import SchemaUnusable, compile_schemas, find_failure, parse_json
from dispatcher.conformance.receiver.handshakes import grant, is_handshake
from dispatcher.conformance.receiver.memory import Memory
from dispatcher.conformance.receiver.policy import DEFENCES, Policy
from dispatcher.conformance.signatures.schemes import Verdict, verify
from dispatcher.conformance.wire.requests import Headers, Received, Reply

__all__ = ["DEFENCES", "Defences", "Judgement", "Policy", "Refusal", "refuse"]

#: schemes that sign the time and the id of a delivery, and the header in which the id stands
SIGNED_IDS = {
    "standard": "webhook-id",
    "standard-ed25519": "webhook-id",
    "rfc9421": "X-Webhook-Delivery",
    "rfc9421-ed25519": "X-Webhook-Delivery",
}

#: seconds that Retry-After names at most: a year
_LONGEST_WAIT = 31_536_000.0

_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a request is not accepted, and what it is answered."""

    defence: str
    reply: Reply
    #: for the owner; repeats no value of the request
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What the defences said.

    Without a refusal, each of them is in `passed` or in `off`; after one, or after a handshake, none was asked.
    """

    passed: tuple[str, ...]
    off: tuple[str, ...]
    refusal: Refusal | None
    #: it was accepted before: answer 2xx, and do not process it again
    is_repeat: bool = False
    #: it is a handshake that is granted, and no message: the answer to it
    handshake: Reply | None = None
    verdicts: tuple[Verdict, ...] = ()
    #: the id under which it is remembered; None where replay is off or was not reached
    delivery: str | None = None
    #: what the callback's token allows
    claims: Claims | None = field(default=None, repr=False)

    @property
    def is_accepted(self) -> bool:
        """It is to be answered 2xx."""
        return self.refusal is None

    @property
    def is_to_be_processed(self) -> bool:
        """It is a message that is accepted for the first time."""
        return self.is_accepted and not self.is_repeat and self.handshake is None


def refuse(defence: str, status: int, reason: str, *, headers: Headers = (), **members: str) -> Refusal:
    """A refusal with a problem document (RFC 9457) that names the defence, and shows `members`, but not the reason."""
    problem = {"title": _TITLES[defence], "status": status, "defence": defence, **members}
    if status == 401:
        # RFC 9110 §15.5.2 asks for a challenge; no registered scheme means "sign it"
        headers = (*headers, ("WWW-Authenticate", "Webhook"))
    reply = Reply(
        status=status,
        headers=(("Content-Type", "application/problem+json"), *headers),
        body=json.dumps(problem).encode(),
    )
    return Refusal(defence=defence, reply=reply, reason=reason)


_TITLES = {
    "https": "This endpoint takes https only.",
    "allow-list": "This address may not send here.",
    "handshake": "This origin may not send here.",
    "method": "This endpoint does not take this method.",
    "shared-secret": "The shared secret is missing or wrong.",
    "content-type": "This endpoint does not take this type of body.",
    "limits": "The request is too large.",
    "rate": "Too many requests.",
    "signature": "The signature is missing or wrong.",
    "timestamp": "The request has no usable time, or is too far from now.",
    "replay": "The delivery has no usable id, or was accepted before.",
    "callback": "The token of this callback does not allow this.",
    "schema": "The body does not have the form of its event type.",
}


@dataclass(kw_only=True, slots=True)
class _Case:
    """One request under judgement: what one defence finds out for the next."""

    now: float
    client: Address | None
    verdicts: tuple[Verdict, ...] = ()
    delivery: str | None = None
    is_repeat: bool = False
    handshake: Reply | None = None
    claims: Claims | None = None

    @property
    def held(self) -> list[Verdict]:
        """The good signatures."""
        return [verdict for verdict in self.verdicts if verdict.is_good]


class _Buckets:
    """A token bucket for each address, for so many addresses: senders of one request each must not fill the memory."""

    def __init__(self, policy: Policy) -> None:
        self._rate = policy.rate or 1.0
        self._burst = policy.burst
        self._addresses = policy.rate_addresses
        #: address -> (tokens, when they were counted), longest rest first
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: Address | None, now: float) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        name = _bucket_name(address)
        level, counted = self._levels.get(name, (float(self._burst), now))
        # a clock that was set back gives nothing and takes nothing
        level = min(float(self._burst), level + max(0.0, now - counted) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._levels[name] = (level if wait else level - 1, now)
        self._levels.move_to_end(name)
        if len(self._levels) > self._addresses:
            self._levels.popitem(last=False)
        return wait


def _bucket_name(address: Address | None) -> str:
    # who has one IPv6 address has the 2**64 of its network
    return str(int(address) >> 64) + "/64" if isinstance(address, IPv6Address) else str(address)


class Defences:
    """The defences of one endpoint, with what they remember. All judge with the same clock (Unix seconds)."""

    def __init__(self, policy: Policy, *, clock: Callable[[], float] = time.time) -> None:
        self._policy = policy
        self._clock = clock
        self._allowed = parse_networks(policy.allowed_networks or (), setting="allowed_networks")
        self._proxies = parse_networks(policy.trusted_proxies, setting="trusted_proxies")
        self._kinds = {kind.lower() for kind in policy.content_types or ()}
        self._secrets = [digest for secret in policy.shared_secrets or () for digest in _digests(secret)]
        self._buckets = _Buckets(policy)
        self._seen = Memory(policy.replay_capacity)
        self._validators = compile_schemas(policy.schemas or {})
        self._on = policy.on
        self._off = tuple(name for name in DEFENCES if name not in self._on)
        self._checks: dict[str, Callable[[Received, _Case], Refusal | None]] = {
            "https": self._https,
            "allow-list": self._allow_list,
            "handshake": self._handshake,
            "method": self._method,
            "shared-secret": self._shared_secret,
            "content-type": self._content_type,
            "limits": self._limits,
            "rate": self._rate,
            "signature": self._signature,
            "timestamp": self._timestamp,
            "replay": self._replay,
            "callback": self._callback,
            "schema": self._schema,
        }

    @property
    def policy(self) -> Policy:
        """How they are set."""
        return self._policy

    def judge(self, request: Received) -> Judgement:
        """Whether to accept a request. Never raises on anything from the wire.

        It is one step without a pause: of any number of requests with one id, one is the first.
        """
        case = _Case(
            now=self._clock(),
            client=client_address(request, header=self._policy.forwarded_for_header, proxies=self._proxies),
        )
        passed: list[str] = []
        for name in self._on:
            refusal = self._checks[name](request, case)
            if refusal is not None:
                return self._judgement(passed, case, refusal)
            passed.append(name)
            if case.handshake is not None:
                return self._judgement(passed, case, None)
        self._remember(case)
        return self._judgement(passed, case, None)

    def forget(self, judged: Judgement | str) -> None:
        """Take back what an accepted delivery used up: it could not be processed, and its next attempt is a first.

        Call it before the failure is answered, if it is answered. A judgement that refused, or found a repeat, used up
        nothing, and nothing comes of it. Given the id only, a callback stays used.
        """
        if isinstance(judged, str):
            self._seen.forget((judged,))
            return
        if not judged.is_to_be_processed:
            return
        if judged.delivery is not None:
            self._seen.forget((judged.delivery,))
        if judged.claims is not None and self._policy.callback is not None:
            self._policy.callback.release(judged.claims)

    def _judgement(self, passed: Sequence[str], case: _Case, refusal: Refusal | None) -> Judgement:
        return Judgement(
            passed=tuple(passed),
            off=self._off,
            refusal=refusal,
            is_repeat=case.is_repeat and refusal is None,
            handshake=case.handshake,
            verdicts=case.verdicts,
            delivery=case.delivery,
            claims=case.claims,
        )

    def _remember(self, case: _Case) -> None:
        """Only now: what was refused for its body must not make the corrected delivery a repeat."""
        if case.is_repeat:
            return
        if case.delivery is not None:
            policy = self._policy
            wanted = max(policy.replay_window, policy.replay_seconds)
            self._seen.add(
                (case.delivery,), now=case.now, needed=case.now + policy.replay_window, wanted=case.now + wanted
            )
        if case.claims is not None and self._policy.callback is not None:
            self._policy.callback.use(case.claims, case.now)

    def _https(self, request: Received, _case: _Case) -> Refusal | None:
        is_secure = request.is_tls
        header = self._policy.forwarded_proto_header
        if header and is_within(parse_address(request.remote), self._proxies):
            # the last word is that of the proxy that we trust; without one it came as it came
            words = [word for value in request.values(header) for word in value.split(",")]
            is_secure = words[-1].strip().lower() == "https" if words else is_secure
        return None if is_secure else refuse("https", 403, "it came over plain http")

    def _allow_list(self, _request: Received, case: _Case) -> Refusal | None:
        if is_within(case.client, self._allowed):
            return None
        return refuse("allow-list", 403, "its address is not on the allow-list" if case.client else "it has no address")

    def _handshake(self, request: Received, case: _Case) -> Refusal | None:
        if not is_handshake(request):
            return None
        found = grant(request, self._policy.handshake_origins or (), self._policy.handshake_rate)
        if isinstance(found, str):
            return refuse("handshake", 403, found)
        case.handshake = found
        return None

    def _method(self, request: Received, _case: _Case) -> Refusal | None:
        methods = self._policy.methods or ()
        if request.method in methods:
            return None
        return refuse("method", 405, "its method is not one that is taken", headers=(("Allow", ", ".join(methods)),))

    def _shared_secret(self, request: Received, _case: _Case) -> Refusal | None:
        given = request.values(self._policy.shared_secret_header)
        if len(given) != 1:
            reason = "the shared secret's header came more than once" if given else "it has no shared secret"
            return refuse("shared-secret", 401, reason)
        # digests: the time taken says nothing about lengths; and all are compared, so nothing about which matched
        digest = hashlib.sha256(given[0].encode("latin-1", "backslashreplace")).digest()
        matches = [hmac.compare_digest(digest, secret) for secret in self._secrets]
        return None if any(matches) else refuse("shared-secret", 401, "the shared secret is wrong")

    def _content_type(self, request: Received, _case: _Case) -> Refusal | None:
        given = request.values("Content-Type")
        if len(given) != 1:
            return refuse("content-type", 415, "it names several content types" if given else "it has no content type")
        if given[0].partition(";")[0].strip(" \t").lower() not in self._kinds:
            return refuse("content-type", 415, "its content type is not one that is taken")
        codings = {
            word.strip(" \t").lower() for value in request.values("Content-Encoding") for word in value.split(",")
        }
        if codings - {"", "identity"}:
            # RFC 9110 §15.5.16: the header says that it was the coding
            return refuse("content-type", 415, "it is compressed", headers=(("Accept-Encoding", "identity"),))
        return None

    def _limits(self, request: Received, _case: _Case) -> Refusal | None:
        policy = self._policy
        if policy.max_headers is not None and len(request.headers) > policy.max_headers:
            return refuse("limits", 431, f"it has more than {policy.max_headers} headers")
        # ": " and the line's end
        size = sum(len(name) + len(value) + 4 for name, value in request.headers)
        if policy.max_header_bytes is not None and size > policy.max_header_bytes:
            return refuse("limits", 431, f"its headers have more than {policy.max_header_bytes} bytes")
        if policy.max_body_bytes is not None and _body_bytes(request) > policy.max_body_bytes:
            return refuse("limits", 413, f"its body has more than {policy.max_body_bytes} bytes")
        return None

    def _rate(self, _request: Received, case: _Case) -> Refusal | None:
        # by address, and not one bucket for all: else anybody could use up the genuine sender's share
        wait = self._buckets.take(case.client, case.now)
        if not wait:
            return None
        headers = (("Retry-After", str(max(1, math.ceil(min(wait, _LONGEST_WAIT))))),)
        return refuse("rate", 429, "too many requests from its address", headers=headers)

    def _signature(self, request: Received, case: _Case) -> Refusal | None:
        policy = self._policy
        # without a tolerance: a right signature over a wrong time is refused below, by the defence whose matter it is
        case.verdicts = tuple(
            verify(scheme, policy.keys, request, now=case.now, tolerance=None, hub_method=policy.hub_method)
            for scheme in policy.signature_schemes or ()
        )
        wanted = len(case.verdicts) if policy.signatures == "all" else 1
        if len(case.held) >= wanted:
            return None
        reasons = [f"{verdict.scheme}: {verdict.reason}" for verdict in case.verdicts if not verdict.is_good]
        return refuse("signature", 401, "; ".join(reasons))

    def _timestamp(self, request: Received, case: _Case) -> Refusal | None:
        """400, not 401: the signature held, and a better one would not help. Senders that disable an endpoint for 401
        and 403 do not for 400, which is right: it is this message that is late, or a clock that is wrong.
        """
        times = {verdict.timestamp for verdict in case.held if verdict.scheme in SIGNED_IDS} - {None}
        if not times:
            given = set(request.values("X-Webhook-Timestamp"))
            if len(given) != 1:
                reason = "X-Webhook-Timestamp came with several values" if given else "it has no timestamp"
                return refuse("timestamp", 400, reason)
            text = given.pop()
            if not _UNIX_SECONDS.fullmatch(text):
                return refuse("timestamp", 400, "X-Webhook-Timestamp is not a number of seconds")
            times = {int(text)}
        tolerance = self._policy.tolerance or 0.0
        ages = [case.now - moment for moment in times if moment is not None]
        if max(ages) > tolerance:
            return refuse("timestamp", 400, f"it is more than {tolerance:g} s old")
        if min(ages) < -tolerance:
            return refuse("timestamp", 400, f"it is more than {tolerance:g} s ahead")
        return None

    def _replay(self, request: Received, case: _Case) -> Refusal | None:
        # the signed ids, if there are any: others can be changed by whoever sends a request again
        names = [SIGNED_IDS[verdict.scheme] for verdict in case.held if verdict.scheme in SIGNED_IDS]
        present = [name for name in self._policy.delivery_headers if request.values(name)]
        ids = {value for name in names or present[:1] for value in request.values(name)}
        if len(ids) != 1 or not all(ids):
            reason = "it names several deliveries" if len(ids) > 1 else "it names no delivery"
            return refuse("replay", 400, reason)
        case.delivery = ids.pop()
        if self._seen.has((case.delivery,), case.now):
            case.is_repeat = True
            return None if self._policy.replay == "quiet" else refuse("replay", 409, "the delivery was accepted before")
        if not self._seen.has_room(case.now):
            # to forget a young one instead would let it in again
            headers = (("Retry-After", str(math.ceil(self._seen.room_in(case.now)) + 1)),)
            return refuse("replay", 503, "as many deliveries as can be remembered are recent", headers=headers)
        return None

    def _callback(self, request: Received, case: _Case) -> Refusal | None:
        if self._policy.callback is None:
            return None
        try:
            path = request.path
        except ValueError:
            return refuse("callback", 401, "its target is no URL")
        found = self._policy.callback.read(path, case.now, is_repeat=case.is_repeat)
        if isinstance(found, CallbackRefused):
            return refuse("callback", found.status, found.reason)
        case.claims = found
        return None

    def _schema(self, request: Received, _case: _Case) -> Refusal | None:
        try:
            value = parse_json(request.body)
        except ValueError as exc:
            return refuse("schema", 400, str(exc))
        event = request.header("X-Webhook-Event") or (value.get("type") if isinstance(value, dict) else None)
        validator = self._validators.get(event) if isinstance(event, str) else None
        if validator is None:
            if self._policy.unknown_events == "pass":
                return None
            return refuse("schema", 422, "its event type has no schema" if event else "it has no event type")
        try:
            failure = find_failure(validator, value)
        except SchemaUnusable as exc:
            # ours to mend: the sender shall try again
            return refuse("schema", 500, str(exc))
        if failure is None:
            return None
        pointer, keyword = failure
        return refuse("schema", 422, f"the body fails at '{pointer}' ({keyword})", pointer=pointer, keyword=keyword)


def _body_bytes(request: Received) -> int:
    """What came, or what was announced: of a body that is too large, nothing need be read."""
    announced = request.header("Content-Length") or ""
    # more digits than any body has bytes say enough by their number
    return max(len(request.body), int(announced[:20]) if _DIGITS.fullmatch(announced) else 0)


def _digests(secret: str) -> Iterator[bytes]:
    """Of a secret's bytes in a header: as UTF-8, and as Latin-1, since senders do the one or the other."""
    yield hashlib.sha256(secret.encode()).digest()
    if not secret.isascii():
        with contextlib.suppress(UnicodeEncodeError):
            yield hashlib.sha256(secret.encode("latin-1")).digest()
