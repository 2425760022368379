"""What is asked of a sender: numbered requirements, each with its source, its level, and how it is judged.

A judge looks at what was observed in one scenario, and answers what was wrong; None if nothing was.
"""

from __future__ import annotations

import base64
import hmac
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dispatcher.conformance.http_signatures import Message, Mismatch, check_content_digest
from dispatcher.conformance.requests import Received
from dispatcher.conformance.results import Level, Requirement, Source
from dispatcher.conformance.scenarios import DEADLINE, Observed
from dispatcher.conformance.stage import ID_HEADERS, TIME_HEADERS, Seen, Subject

STANDARD = Source(
    name="Standard Webhooks",
    url="https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md",
)
WEBSUB = Source(name="WebSub", url="https://www.w3.org/TR/websub/")
GITHUB = Source(name="GitHub: webhook events and payloads", url="https://docs.github.com/en/webhooks")
HTTP = Source(name="RFC 9110", url="https://www.rfc-editor.org/rfc/rfc9110")
HTTP11 = Source(name="RFC 9112", url="https://www.rfc-editor.org/rfc/rfc9112")
JSON = Source(name="RFC 8259", url="https://www.rfc-editor.org/rfc/rfc8259")
TLS = Source(name="RFC 9525", url="https://www.rfc-editor.org/rfc/rfc9525")
MESSAGE_SIGNATURES = Source(name="RFC 9421", url="https://www.rfc-editor.org/rfc/rfc9421")
DIGEST = Source(name="RFC 9530", url="https://www.rfc-editor.org/rfc/rfc9530")
CLOUDEVENTS = Source(
    name="CloudEvents webhook specification",
    url="https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md",
)
SERVICESTACK = Source(name="ServiceStack.Webhooks", url="https://github.com/jezzsantos/ServiceStack.Webhooks")
OWASP = Source(
    name="OWASP: preventing server-side request forgery",
    url="https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html",
)
CONTRACT = Source(name="docs/http-api.md")

MUST, SHOULD, MAY = Level.MUST, Level.SHOULD, Level.MAY

Judge = Callable[[Observed], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A requirement, and how it is judged."""

    requirement: Requirement
    judge: Judge


CHECKS: dict[str, Check] = {}


def _check(id_: str, level: Level, scenario: str, source: Source, title: str) -> Callable[[Judge], Judge]:
    def register(judge: Judge) -> Judge:
        if id_ in CHECKS:
            raise ValueError(f"{id_} is there already")
        requirement = Requirement(id=id_, level=level, title=title, source=source, scenario=scenario)
        CHECKS[id_] = Check(requirement=requirement, judge=judge)
        return judge

    return register


def _each(subject: Subject, wrong: Callable[[Seen], str | None]) -> str | None:
    """What is wrong with the first request that has something wrong; also if there is no request."""
    if not subject.seen:
        return "no request came"
    found = ((seen, wrong(seen)) for seen in subject.seen)
    return next((f"request {seen.request.number}: {text}" for seen, text in found if text), None)


def _all_of(observed: Observed, judge: Callable[[Subject], str | None]) -> str | None:
    """What is wrong at the first subject where something is."""
    found = ((name, judge(subject)) for name, subject in observed.subjects.items())
    return next((f"{name}: {text}" for name, text in found if text), None)


def _first(texts: Iterable[str | None]) -> str | None:
    return next((text for text in texts if text), None)


# --- HTTP -------------------------------------------------------------------------------------------------


@_check("HTTP-01", MUST, "plain", STANDARD, "A message is a POST.")
def _(seen: Observed) -> str | None:
    return _each(seen["plain"], lambda one: None if one.request.method == "POST" else f"it is a {one.request.method}")


@_check("HTTP-02", MUST, "plain", HTTP11, "A request has one Host header, and it names the URL's authority.")
def _(seen: Observed) -> str | None:
    host = seen["plain"].url.split("/")[2]
    return _each(
        seen["plain"], lambda one: None if one.request.values("Host") == [host] else "Host is not the URL's authority"
    )


@_check("HTTP-03", MUST, "plain", HTTP11, "The body is as long as the request says.")
def _(seen: Observed) -> str | None:
    return _refused(seen) or _each(seen["plain"], lambda one: None if one.request.is_complete else "the body broke off")


def _refused(seen: Observed) -> str | None:
    refusals = seen.facts["refusals"]
    assert isinstance(refusals, list)
    return f"a request was refused: {refusals[0]}" if refusals else None


@_check("HTTP-04", SHOULD, "plain", HTTP, "A body of JSON is called application/json.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        kind = (one.request.header("Content-Type") or "").partition(";")[0].strip().lower()
        return None if kind == "application/json" or kind.endswith("+json") else f"it is called {kind or 'nothing'}"

    return _each(seen["plain"], wrong)


@_check("HTTP-05", SHOULD, "plain", HTTP, "User-Agent names the sender.")
def _(seen: Observed) -> str | None:
    libraries = ("python-httpx", "python-requests", "python-urllib", "aiohttp", "go-http-client", "node-fetch", "curl")

    def wrong(one: Seen) -> str | None:
        agent = one.request.header("User-Agent") or ""
        return None if agent and not agent.lower().startswith(libraries) else "it names nobody, or a library"

    return _each(seen["plain"], wrong)


@_check("HTTP-06", MUST, "plain", WEBSUB, "The request goes to the URL exactly as it was given, its query included.")
def _(seen: Observed) -> str | None:
    target = "/" + seen["plain"].url.split("/", 3)[3]
    return _each(
        seen["plain"], lambda one: None if one.request.target == target else "the target has other bytes than the URL"
    )


@_check("HTTP-07", MUST, "callback", HTTP, "No Referer and no User-Agent tells of the URL.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        if one.request.values("Referer"):
            return "it has a Referer"
        token = str(seen.facts["token"])
        told = [name for name, value in one.request.headers if token in value and name.lower() != "host"]
        return f"the URL's token stands in {told[0]}" if told else None

    return _each(seen["callback"], wrong)


@_check("HTTP-08", SHOULD, "plain", OWASP, "Cookies that an endpoint sets are not sent back.")
def _(seen: Observed) -> str | None:
    return _each(seen["plain"], lambda one: "it has a Cookie" if one.request.values("Cookie") else None)


@_check("HTTP-09", MUST, "plain", HTTP, "Headers that stand for one value are there once.")
def _(seen: Observed) -> str | None:
    single = ("Content-Type", "Content-Length", "Host", "User-Agent", *ID_HEADERS, *TIME_HEADERS)

    def wrong(one: Seen) -> str | None:
        twice = [name for name in single if len(one.request.values(name)) > 1]
        return f"{twice[0]} is there twice" if twice else None

    return _each(seen["plain"], wrong)


@_check("HTTP-10", MUST, "injection", OWASP, "No text of a caller becomes a header.")
def _(seen: Observed) -> str | None:
    if not seen["injection"].seen:
        return "no request came"
    injected = [one for one in seen.seen if one.request.values("X-Injected")]
    return "X-Injected came as a header" if injected else _refused(seen)


@_check("HTTP-11", SHOULD, "plain", HTTP, "The answer is not asked for in a compressed form.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        value = (one.request.header("Accept-Encoding") or "identity").lower()
        return None if value.strip() == "identity" else "Accept-Encoding invites what has to be unpacked"

    return _each(seen["plain"], wrong)


@_check("HTTP-12", MAY, "plain", HTTP11, "A connection serves several messages.")
def _(seen: Observed) -> str | None:
    connections = {one.request.connection for one in seen["plain"].seen}
    return None if len(connections) < len(seen["plain"].seen) else "each came over a connection of its own"


@_check("HTTP-13", MUST, "plain", HTTP, "No credentials of the sender's own go to an endpoint.")
def _(seen: Observed) -> str | None:
    names = ("Authorization", "Proxy-Authorization")
    return _each(
        seen["plain"], lambda one: _first(f"it has {name}" if one.request.values(name) else None for name in names)
    )


# --- the body ---------------------------------------------------------------------------------------------


@_check("BODY-01", MUST, "plain", JSON, "A body that is called JSON is JSON in UTF-8.")
def _(seen: Observed) -> str | None:
    return _each(seen["plain"], lambda one: _is_no_json(one.request))


def _is_no_json(request: Received) -> str | None:
    try:
        json.loads(request.body.decode("utf-8"))
    except ValueError:
        return "it cannot be read"
    return None


@_check("BODY-02", SHOULD, "plain", CONTRACT, "The payload's bytes are kept: numbers, spaces, escapes, order.")
def _(seen: Observed) -> str | None:
    missing = [
        n
        for n, payload in enumerate(seen["plain"].published, 1)
        if not any(payload in one.request.body for one in seen["plain"].seen)
    ]
    return f"the bytes of payload {missing[0]} came in no request" if missing else None


@_check("BODY-03", MUST, "retries", STANDARD, "Each attempt of a message has the same body.")
def _(seen: Observed) -> str | None:
    different = [ones for ones in seen.messages if len({one.request.body for one in ones}) > 1]
    return "the body of a message changed between attempts" if different else None


@_check("BODY-04", MUST, "callback", CONTRACT, "A callback's body is the payload, byte by byte.")
def _(seen: Observed) -> str | None:
    payload = seen["callback"].published[0]
    return _each(seen["callback"], lambda one: None if payload in one.request.body else "it has other bytes")


# --- identity ---------------------------------------------------------------------------------------------


@_check("ID-01", MUST, "plain", STANDARD, "Each message has an id.")
def _(seen: Observed) -> str | None:
    return _each(seen["plain"], lambda one: None if one.id else f"none of {', '.join(ID_HEADERS)} is there")


@_check("ID-02", MUST, "retries", STANDARD, "The id stays the same over all attempts of a message.")
def _(seen: Observed) -> str | None:
    changed = [subject for subject in seen.subjects.values() if len({one.id for one in subject.seen}) > 1]
    return f"{len(changed)} of {seen.published} messages came with several" if changed else None


@_check("ID-03", MUST, "retries", STANDARD, "Different messages have different ids.")
def _(seen: Observed) -> str | None:
    ids = {one.id for one in seen.seen}
    return None if len(ids) >= seen.published else f"{len(ids)} ids for {seen.published} messages"


@_check("ID-04", SHOULD, "plain", STANDARD, "An id is short, of visible ASCII, and has no full stop.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        id_ = one.id or ""
        good = 0 < len(id_) <= 255 and all("!" <= character <= "~" for character in id_) and "." not in id_
        return None if good else "it is empty, long, or has other characters"

    return _each(seen["plain"], wrong)


@_check("ID-05", MAY, "retries", CONTRACT, "Attempts are numbered 1, 2, 3 in X-Webhook-Attempt.")
def _(seen: Observed) -> str | None:
    for ones in seen.messages:
        numbers = [one.request.header("X-Webhook-Attempt") for one in ones]
        if numbers != [str(n) for n in range(1, len(ones) + 1)]:
            return "a message's attempts are numbered otherwise"
    return None


# --- time -------------------------------------------------------------------------------------------------


@_check("TIME-01", MUST, "signed-by-standard", STANDARD, "The timestamp is in whole Unix seconds, and of now.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        if not (one.timestamp or "").isdigit():
            return "there is none, or it is no whole number"
        off = abs(int(one.timestamp or 0) - one.request.at)
        return None if off <= 5 else f"it is {off:.0f} s off"

    return _each(seen["signed"], wrong)


@_check("TIME-02", MUST, "signed-by-standard", STANDARD, "Each attempt has a timestamp of its own.")
def _(seen: Observed) -> str | None:
    for ones in seen["signed"].messages.values():
        stamps = [one.timestamp for one in ones]
        if len(ones) > 1 and len(set(stamps)) == 1:
            return f"{len(ones)} attempts more than a second apart have the same"
    return None


@_check("TIME-03", MUST, "signed-by-standard", STANDARD, "The timestamp is part of what is signed.")
def _(seen: Observed) -> str | None:
    return _each(seen["signed"], lambda one: _signature(seen["signed"], "standard", one))


# --- signatures -------------------------------------------------------------------------------------------

_SCHEMES = (
    ("websub", WEBSUB, "X-Hub-Signature is the HMAC of the body that it says"),
    ("github", GITHUB, "X-Hub-Signature-256 and X-Hub-Signature are the HMACs of the body by SHA-256 and SHA-1"),
    ("standard", STANDARD, "webhook-signature is the HMAC-SHA256 of id, timestamp and body"),
    ("standard-ed25519", STANDARD, "webhook-signature is the Ed25519 signature of id, timestamp and body"),
    ("timestamped", CONTRACT, "X-Webhook-Signature is the HMAC-SHA256 of the body"),
    ("servicestack", SERVICESTACK, "X-Hub-Signature is the HMAC-SHA256 of the body, by the secret's text, called sha1"),
    ("rfc9421", MESSAGE_SIGNATURES, "Signature is that of RFC 9421 by HMAC-SHA256, over the digest of the body"),
    ("rfc9421-ed25519", MESSAGE_SIGNATURES, "Signature is that of RFC 9421 by Ed25519, over the digest of the body"),
)


def _signature(subject: Subject, scheme: str, one: Seen, *, secret: str | None = None) -> str | None:
    verdict = subject.verify(scheme, one.request, secret=secret)
    return None if verdict.is_good else verdict.reason


def _of_scheme(number: int, scheme: str, source: Source, what: str) -> None:
    scenario = f"signed-by-{scheme}"

    @_check(f"SIGN-{number:02}", MUST, scheme_scenario := scenario, source, f"By {scheme}, {what}; on every attempt.")
    def _(seen: Observed) -> str | None:
        return _each(seen["signed"], lambda one: _signature(seen["signed"], scheme, one))

    @_check(
        f"SIGN-{number + 10:02}",
        MUST,
        scheme_scenario,
        source,
        f"By {scheme}, another subscription's secret signs otherwise.",
    )
    def _(seen: Observed) -> str | None:
        other = seen["other"]
        if not other.seen:
            return "no request came"
        stranger = seen["signed"].verify(scheme, other.seen[0].request)
        return "the other's request verifies with this one's secret" if stranger.is_good else None


for _number, (_scheme, _source, _what) in enumerate(_SCHEMES, 1):
    _of_scheme(_number, _scheme, _source, _what)


@_check("SIGN-21", MUST, "plain", STANDARD, "The secret is not in the request.")
def _(seen: Observed) -> str | None:
    text = seen["plain"].secret.removeprefix("whsec_")
    key = base64.b64decode(text)
    forms = (text.encode(), key, key.hex().encode(), text.encode().hex().encode(), base64.b64encode(text.encode()))
    return _each(seen["plain"], lambda one: "it is" if any(form in one.request.raw for form in forms) else None)


@_check("SIGN-22", SHOULD, "plain", STANDARD, "Without being asked for another, the sender signs by SHA-256 or better.")
def _(seen: Observed) -> str | None:
    return _each(seen["plain"], lambda one: _is_weak(seen["plain"], one))


def _is_weak(subject: Subject, one: Seen) -> str | None:
    if any(
        subject.verify(scheme, one.request).is_good
        for scheme, _, _ in _SCHEMES
        if scheme not in {"github", "servicestack"}
    ):
        return None
    # GitHub's has a header by SHA-1 beside the one that counts.
    value = one.request.header("X-Hub-Signature-256") or ""
    expected = hmac.new(subject.secret.encode(), one.request.body, "sha256").hexdigest()
    good = hmac.compare_digest(value.encode("latin-1"), f"sha256={expected}".encode())
    return None if good else "no such signature is good"


@_check("SIGN-23", SHOULD, "signed-by-websub", WEBSUB, "Hexadecimal digits are in lower case.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        value = one.request.header("X-Hub-Signature") or ""
        return None if value == value.lower() else "it has upper case"

    return _each(seen["signed"], wrong)


@_check("SIGN-24", MUST, "signed-by-rfc9421", DIGEST, "Content-Digest is that of the body.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        try:
            message = Message(method=one.request.method, url="", headers=one.request.headers)
            check_content_digest(message, one.request.body)
        except Mismatch as exc:
            return str(exc)
        return None

    return _each(seen["signed"], wrong)


@_check("SIGN-25", SHOULD, "signed-by-rfc9421", MESSAGE_SIGNATURES, "A signature tells when it was made.")
def _(seen: Observed) -> str | None:
    return _each(
        seen["signed"],
        lambda one: None if ";created=" in (one.request.header("Signature-Input") or "") else "it has no `created`",
    )


@_check("SIGN-26", MUST, "callback", CONTRACT, "A callback is signed with the task's own secret.")
def _(seen: Observed) -> str | None:
    return _each(seen["callback"], lambda one: _is_weak(seen["callback"], one))


# --- retries ----------------------------------------------------------------------------------------------


def _tries(subject: Subject, count: int) -> str | None:
    """What is wrong when each message should have come so many times."""
    if not subject.seen:
        return "no request came"
    odd = [len(ones) for ones in subject.messages.values() if len(ones) != count]
    return f"a message came {odd[0]} times, not {count}" if odd else None


@_check("RETRY-01", MUST, "retries", STANDARD, "What is answered with 5xx is sent again.")
def _(seen: Observed) -> str | None:
    few = [subject for subject in seen.subjects.values() if len(subject.seen) < 4]
    return f"a message came {len(few[0].seen)} times, not 4" if few else None


@_check("RETRY-02", MUST, "retries", STANDARD, "What was answered with 2xx is not sent again.")
def _(seen: Observed) -> str | None:
    many = [subject for subject in seen.subjects.values() if len(subject.seen) > 4]
    return f"a message came {len(many[0].seen)} times, the fourth time with success" if many else None


@_check("RETRY-03", SHOULD, "retries", STANDARD, "The distance between attempts grows.")
def _(seen: Observed) -> str | None:
    whole = [gaps for gaps in seen.gaps if len(gaps) >= 3]
    if not whole:
        return "too few attempts came to tell"
    # over all messages: one of them may have had to wait for something else
    first, last = (statistics.median(gaps[at] for gaps in whole) for at in (0, 2))
    return None if last >= 1.5 * first else f"the third is {last:.2f} s, the first {first:.2f} s"


@_check(
    "RETRY-04",
    SHOULD,
    "retries",
    STANDARD,
    "The distances are spread by chance, so that attempts do not come in waves.",
)
def _(seen: Observed) -> str | None:
    last = [gaps[2] for gaps in seen.gaps if len(gaps) >= 3]
    if len(last) < 6:
        return "too few attempts came to tell"
    spread = max(last) - min(last)
    return None if spread >= 0.1 * (sum(last) / len(last)) else f"{len(last)} distances are alike within {spread:.3f} s"


@_check("RETRY-05", MUST, "exhausted", STANDARD, "The number of attempts is limited.")
def _(seen: Observed) -> str | None:
    return _tries(seen["exhausted"], int(str(seen.facts["tries"])))


@_check("RETRY-06", SHOULD, "passing", HTTP, "408, 429, 500, 502, 503 and 504 are taken for passing.")
def _(seen: Observed) -> str | None:
    return _all_of(seen, lambda subject: _tries(subject, 2))


@_check(
    "RETRY-07",
    MUST,
    "broken",
    STANDARD,
    "A connection that breaks before a whole answer is a failure, and tried again.",
)
def _(seen: Observed) -> str | None:
    return _all_of(seen, lambda subject: _tries(subject, 2))


@_check("RETRY-08", MUST, "successes", STANDARD, "Every 2xx is a success.")
def _(seen: Observed) -> str | None:
    return _all_of(seen, lambda subject: _tries(subject, 1))


@_check(
    "RETRY-09",
    SHOULD,
    "refusals",
    CONTRACT,
    "What is refused for good (400, 401, 403, 404, 405, 413, 422) is not sent again.",
)
def _(seen: Observed) -> str | None:
    return _all_of(seen, lambda subject: _tries(subject, 1))


@_check("RETRY-10", MUST, "in-between", HTTP, "An answer that is no 2xx is no success.")
def _(seen: Observed) -> str | None:
    return _all_of(
        seen, lambda subject: None if len(subject.seen) > 1 else f"it came {len(subject.seen)} times, not again"
    )


@_check("RETRY-11", MUST, "gone", STANDARD, "After 410 the message is not sent again.")
def _(seen: Observed) -> str | None:
    return None if seen.facts["before"] == 1 else f"it came {seen.facts['before']} times"


def _waited(subject: Subject, seconds: float) -> str | None:
    gaps = [gap for gaps in subject.gaps for gap in gaps]
    if not gaps:
        return "it was not sent again"
    return None if min(gaps) >= seconds else f"it was sent again after {min(gaps):.2f} s"


@_check("RETRY-12", SHOULD, "retry-after", HTTP, "Retry-After in seconds is kept, with 429 and with 503.")
def _(seen: Observed) -> str | None:
    return _first(_waited(seen[name], 1.95) for name in ("seconds", "unavailable"))


@_check("RETRY-13", SHOULD, "retry-after", HTTP, "Retry-After as a date is kept.")
def _(seen: Observed) -> str | None:
    # a date has whole seconds, so up to one is lost
    return _waited(seen["date"], 1.95)


@_check(
    "RETRY-14",
    MUST,
    "retry-after",
    HTTP,
    "Retry-After of the past, of zero, or as garbage neither hastens nor ends the retries.",
)
def _(seen: Observed) -> str | None:
    # the schedule says 0.5 s, and chance may take a fifth of it
    return _first(_waited(seen[name], 0.3) for name in ("past", "zero", "garbage"))


@_check("RETRY-15", SHOULD, "neighbours", STANDARD, "The first attempt is prompt.")
def _(seen: Observed) -> str | None:
    delays = seen.facts["delays"]
    assert isinstance(delays, list)
    return None if sorted(delays)[len(delays) // 2] < 2.0 else f"it took {sorted(delays)[len(delays) // 2]:.1f} s"


# --- redirects --------------------------------------------------------------------------------------------


@_check("REDIR-01", MUST, "redirects", OWASP, "No redirect is followed.")
def _(seen: Observed) -> str | None:
    came = seen["elsewhere"].seen
    return f"{len(came)} requests came to where the redirects point" if came else None


@_check("REDIR-02", SHOULD, "redirects", STANDARD, "A redirect is a failure, and tried again where it was sent first.")
def _(seen: Observed) -> str | None:
    return _first(
        f"{name}: {text}"
        for name, subject in seen.subjects.items()
        if name != "elsewhere" and (text := _tries(subject, 2))
    )


# --- limits -----------------------------------------------------------------------------------------------

#: seconds that a sender may need to notice that its time is up
_GRACE = 1.5
#: bytes of an answer that may be taken, those included that wait in the buffers of both systems
_MOST_TAKEN = 24 * 1_048_576


def _ended(subject: Subject) -> str | None:
    if not subject.seen:
        return "no request came"
    lasted = subject.seen[0].lasted
    if lasted is None:
        return "the exchange was not over after ten seconds"
    if lasted > DEADLINE + _GRACE:
        return f"it lasted {lasted:.1f} s, with a deadline of {DEADLINE:g} s"
    taken = subject.seen[0].taken
    return f"{taken / 1_048_576:.0f} MiB of the answer were taken" if taken > _MOST_TAKEN else None


def _of_endless(number: int, fault: str, title: str, source: Source = CONTRACT) -> None:
    @_check(f"LIMIT-{number:02}", MUST, "endless", source, title)
    def _(seen: Observed) -> str | None:
        return _ended(seen[fault])


for _number, (_fault, _title) in enumerate(
    (
        ("hang", "The deadline holds against an endpoint that never answers."),
        ("slow-headers", "The deadline holds against headers that come byte by byte."),
        ("drip", "The deadline holds against a body that drips."),
        ("endless-headers", "Headers without end are cut."),
        ("interim-flood", "A flood of interim answers (1xx) is cut."),
        ("huge", "Of a huge body only a part is read."),
    ),
    1,
):
    _of_endless(_number, _fault, _title)


@_check("LIMIT-08", MUST, "endless", STANDARD, "An attempt that ran into its deadline is tried again.")
def _(seen: Observed) -> str | None:
    return _first(f"{name}: {text}" for name in ("hang", "slow-headers") if (text := _tries(seen[name], 2)))


@_check("LIMIT-09", SHOULD, "neighbours", STANDARD, "An endpoint that hangs does not hold up another.")
def _(seen: Observed) -> str | None:
    delays = seen.facts["delays"]
    assert isinstance(delays, list)
    if len(seen["healthy"].seen) < len(seen["healthy"].published):
        return "not every message came"
    return None if max(delays) < 5.0 else f"a message of the other took {max(delays):.1f} s"


@_check(
    "LIMIT-10",
    MUST,
    "second-answer",
    HTTP11,
    "An answer that nobody asked for is not taken for that of the next request.",
)
def _(seen: Observed) -> str | None:
    # Who takes it for that counts the next message as answered, and does not send it.
    missing = len(seen["second-answer"].published) - len(seen["second-answer"].messages)
    return f"{missing} messages did not come" if missing else _tries(seen["second-answer"], 1)


# --- the health of a subscription -------------------------------------------------------------------------


@_check("HEALTH-01", SHOULD, "gone", STANDARD, "After 410 the subscription is disabled.")
def _(seen: Observed) -> str | None:
    return _disabled(seen)


def _disabled(seen: Observed) -> str | None:
    if not seen.facts["was_active"]:
        return "it was not active before"
    return "it is active" if seen.facts["active"] else None


@_check("HEALTH-02", SHOULD, "gone", STANDARD, "After 410 nothing more is sent.")
def _(seen: Observed) -> str | None:
    later = len(seen["subject"].seen) - int(str(seen.facts["before"]))
    return f"{later} requests came" if later else None


@_check("HEALTH-03", SHOULD, "unauthorized", CONTRACT, "An endpoint that refuses is disabled.")
def _(seen: Observed) -> str | None:
    return _disabled(seen)


@_check("HEALTH-04", SHOULD, "unauthorized", CONTRACT, "To a disabled endpoint nothing is sent.")
def _(seen: Observed) -> str | None:
    later = len(seen["subject"].seen) - int(str(seen.facts["before"]))
    return f"{later} requests came" if later else None


@_check(
    "HEALTH-05", SHOULD, "enabling", CONTRACT, "What was published while it was disabled comes after it is enabled."
)
def _(seen: Observed) -> str | None:
    subject = seen["subject"]
    bodies = [one.request.body for one in subject.seen[int(str(seen.facts["before"])) :]]
    missing = [payload for payload in subject.published if not any(payload in body for body in bodies)]
    return f"{len(missing)} of {len(subject.published)} payloads did not come" if missing else None


@_check("HEALTH-06", SHOULD, "enabling", CONTRACT, "Once enabled it is active.")
def _(seen: Observed) -> str | None:
    return None if seen.facts["active"] else "it is not"


# --- rotation ---------------------------------------------------------------------------------------------


@_check("ROT-01", SHOULD, "rotation", STANDARD, "While two secrets are valid, the header has a signature by each.")
def _(seen: Observed) -> str | None:
    both = seen["both"]
    new = str(seen.facts["new"])
    return _each(both, lambda one: _signature(both, "standard", one) or _signature(both, "standard", one, secret=new))


@_check(
    "ROT-02",
    SHOULD,
    "rotation",
    CONTRACT,
    "Where a header has room for one, a receiver of the old secret is served by a second attempt.",
)
def _(seen: Observed) -> str | None:
    old = seen["old"]
    if len(old.seen) < 2:
        return "no second attempt came"
    return _signature(old, "websub", old.seen[1])


@_check("ROT-03", MUST, "rotation", STANDARD, "Without an overlap the old secret does not sign any more.")
def _(seen: Observed) -> str | None:
    at_once = seen["at-once"]
    new = str(seen.facts["new"])

    def wrong(one: Seen) -> str | None:
        if at_once.verify("standard", one.request).is_good:
            return "it is signed with the old secret"
        return _signature(at_once, "standard", one, secret=new)

    return _each(at_once, wrong)


# --- TLS, and where nothing goes --------------------------------------------------------------------------


@_check("TLS-01", MUST, "tls", TLS, "An expired certificate is refused.")
def _(seen: Observed) -> str | None:
    return "a request came" if seen["expired"].seen else None


@_check("TLS-02", MUST, "tls", TLS, "A certificate for another host is refused.")
def _(seen: Observed) -> str | None:
    return "a request came" if seen["other-host"].seen else None


@_check("TLS-03", MUST, "tls", TLS, "A certificate that nobody vouches for is refused.")
def _(seen: Observed) -> str | None:
    return "a request came" if seen["self-signed"].seen else None


@_check("TLS-04", MUST, "tls", TLS, "A certificate that is in order is accepted.")
def _(seen: Observed) -> str | None:
    return None if seen["good"].seen else "no request came"


@_check("EGRESS-01", MUST, "own-machine", OWASP, "As in production, nothing is sent to the sender's own machine.")
def _(seen: Observed) -> str | None:
    return f"{seen.facts['arrived']} requests came" if seen.facts["arrived"] else None


@_check(
    "EGRESS-02",
    SHOULD,
    "own-machine",
    OWASP,
    "A URL that names a loopback address, however it is spelt, is refused when it is given.",
)
def _(seen: Observed) -> str | None:
    taken = seen.facts["taken"]
    assert isinstance(taken, list)
    return f"taken: {', '.join(sorted(set(taken)))}" if taken else None
