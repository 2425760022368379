"""The request itself: method, target, headers, body, the message's id, the attempt's time."""

from __future__ import annotations

import itertools
import json
import re

from dispatcher.conformance.sender_examination.checks.judging import (
    MAY,
    MUST,
    SHOULD,
    check,
    each,
    first,
    signature_fault,
    unless_mute,
)
from dispatcher.conformance.sender_examination.scenario import Observed
from dispatcher.conformance.sender_examination.stage import Seen
from dispatcher.conformance.sources import CONTRACT, HTTP, HTTP11, JSON, OWASP_SSRF, STANDARD, WEBSUB
from dispatcher.conformance.wire.requests import Received


@check("HTTP-01", MUST, "plain", STANDARD, "A message is a POST.")
def _(seen: Observed) -> str | None:
    return each(seen["plain"], lambda one: None if one.request.method == "POST" else f"it is a {one.request.method}")


@check("HTTP-02", MUST, "plain", HTTP11, "A request has one Host header, and it names the URL's authority.")
def _(seen: Observed) -> str | None:
    host = seen["plain"].url.split("/")[2]
    return each(
        seen["plain"], lambda one: None if one.request.values("Host") == [host] else "Host is not the URL's authority"
    )


@check("HTTP-03", MUST, "plain", HTTP11, "The body is as long as the request says.")
def _(seen: Observed) -> str | None:
    return _refused(seen) or each(seen["plain"], lambda one: None if one.request.is_complete else "the body broke off")


def _refused(seen: Observed) -> str | None:
    refusals = seen.facts["refusals"]
    assert isinstance(refusals, list)
    return f"a request was refused: {refusals[0]}" if refusals else None


@check("HTTP-04", SHOULD, "plain", HTTP, "A body of JSON is called application/json.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        kind = (one.request.header("Content-Type") or "").partition(";")[0].strip().lower()
        return None if kind == "application/json" or kind.endswith("+json") else f"it is called {kind or 'nothing'}"

    return each(seen["plain"], wrong)


@check("HTTP-05", SHOULD, "plain", HTTP, "User-Agent names the sender.")
def _(seen: Observed) -> str | None:
    libraries = ("python-httpx", "python-requests", "python-urllib", "aiohttp", "go-http-client", "node-fetch", "curl")

    def wrong(one: Seen) -> str | None:
        agent = one.request.header("User-Agent") or ""
        return None if agent and not agent.lower().startswith(libraries) else "it names nobody, or a library"

    return each(seen["plain"], wrong)


@check("HTTP-06", MUST, "plain", WEBSUB, "The request goes to the URL exactly as it was given, its query included.")
def _(seen: Observed) -> str | None:
    target = "/" + seen["plain"].url.split("/", 3)[3]
    return each(
        seen["plain"], lambda one: None if one.request.target == target else "the target has other bytes than the URL"
    )


@check("HTTP-07", MUST, "callback", HTTP, "No Referer and no User-Agent tells of the URL.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        if one.request.values("Referer"):
            return "it has a Referer"
        token = str(seen.facts["token"])
        told = [name for name, value in one.request.headers if token in value and name.lower() != "host"]
        return f"the URL's token stands in {told[0]}" if told else None

    return each(seen["callback"], wrong)


@check("HTTP-08", SHOULD, "plain", OWASP_SSRF, "Cookies that an endpoint sets are not sent back.")
def _(seen: Observed) -> str | None:
    return each(seen["plain"], lambda one: "it has a Cookie" if one.request.values("Cookie") else None)


@check("HTTP-09", MUST, "plain", HTTP, "Headers that stand for one value are there once.")
def _(seen: Observed) -> str | None:
    names = seen["plain"].names
    single = ("Content-Type", "Content-Length", "Host", "User-Agent", *names.id, *names.timestamp)

    def wrong(one: Seen) -> str | None:
        twice = [name for name in single if len(one.request.values(name)) > 1]
        return f"{twice[0]} is there twice" if twice else None

    return each(seen["plain"], wrong)


@check("HTTP-10", MUST, "injection", OWASP_SSRF, "No text of a caller becomes a header.")
def _(seen: Observed) -> str | None:
    if not seen["injection"].seen:
        return "no request came"
    injected = [one for one in seen.seen if one.request.values("X-Injected")]
    return "X-Injected came as a header" if injected else _refused(seen)


@check("HTTP-11", SHOULD, "plain", HTTP, "The answer is not asked for in a compressed form.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        value = (one.request.header("Accept-Encoding") or "identity").lower()
        return None if value.strip() == "identity" else "Accept-Encoding invites what has to be unpacked"

    return each(seen["plain"], wrong)


@check("HTTP-12", MAY, "plain", HTTP11, "A connection serves several messages.")
def _(seen: Observed) -> str | None:
    connections = {one.request.connection for one in seen["plain"].seen}
    return None if len(connections) < len(seen["plain"].seen) else "each came over a connection of its own"


@check("HTTP-13", MUST, "plain", HTTP, "No credentials of the sender's own go to an endpoint.")
def _(seen: Observed) -> str | None:
    names = ("Authorization", "Proxy-Authorization")
    return each(
        seen["plain"], lambda one: first(f"it has {name}" if one.request.values(name) else None for name in names)
    )


@check(
    "HTTP-14",
    MUST,
    "plain",
    HTTP11,
    "A request is well-formed: one framing, lines that end in CR LF, no value over several lines.",
)
def _(seen: Observed) -> str | None:
    return _refused(seen) or (None if seen["plain"].seen else "no request came")


@check("HTTP-15", MUST, "retries", WEBSUB, "Each attempt of a message has the same method, target and Content-Type.")
def _(seen: Observed) -> str | None:
    unless_mute(seen)
    for subject in seen.subjects.values():
        for what, values in (
            ("method", {one.request.method for one in subject.seen}),
            ("target", {one.request.target for one in subject.seen}),
            ("Content-Type", {tuple(one.request.values("Content-Type")) for one in subject.seen}),
        ):
            if len(values) > 1:
                return f"the {what} of a message changed between attempts"
    return None


@check("ROUTE-01", MUST, "routes", STANDARD, "A subscription gets events of its own type, and no others.")
def _(seen: Observed) -> str | None:
    for name, subject in seen.subjects.items():
        strangers = [one for one in subject.seen if not any(own in one.request.body for own in subject.published)]
        if strangers:
            return f"{name}: {len(strangers)} requests came of another type, which only begins alike"
        if not subject.seen:
            return f"{name}: nothing of its own type came"
    return None


@check("BODY-01", MUST, "plain", JSON, "A body that is called JSON is JSON in UTF-8.")
def _(seen: Observed) -> str | None:
    return each(seen["plain"], lambda one: _is_no_json(one.request))


def _is_no_json(request: Received) -> str | None:
    try:
        json.loads(request.body.decode("utf-8"))
    except (ValueError, RecursionError):
        return "it cannot be read"
    return None


@check("BODY-02", SHOULD, "plain", CONTRACT, "The payload's bytes are kept: numbers, spaces, escapes, order.")
def _(seen: Observed) -> str | None:
    missing = [
        n
        for n, payload in enumerate(seen["plain"].published, 1)
        if not any(payload in one.request.body for one in seen["plain"].seen)
    ]
    return f"the bytes of payload {missing[0]} came in no request" if missing else None


@check("BODY-03", MUST, "retries", STANDARD, "Each attempt of a message has the same body.")
def _(seen: Observed) -> str | None:
    unless_mute(seen)
    different = [ones for ones in seen.messages if len({one.request.body for one in ones}) > 1]
    return "the body of a message changed between attempts" if different else None


@check("BODY-04", MUST, "callback", CONTRACT, "A callback's body is the payload, byte by byte.")
def _(seen: Observed) -> str | None:
    payload = seen["callback"].published[0]
    return each(seen["callback"], lambda one: None if payload in one.request.body else "it has other bytes")


@check("ID-01", MUST, "plain", STANDARD, "Each message has an id.")
def _(seen: Observed) -> str | None:
    return each(seen["plain"], lambda one: None if one.id else f"none of {', '.join(one.names.id)} is there")


@check("ID-02", MUST, "retries", STANDARD, "The id stays the same over all attempts of a message.")
def _(seen: Observed) -> str | None:
    unless_mute(seen)
    changed = [subject for subject in seen.subjects.values() if len({one.id for one in subject.seen}) > 1]
    return f"{len(changed)} of {seen.published} messages came with several" if changed else None


@check("ID-03", MUST, "retries", STANDARD, "Different messages have different ids.")
def _(seen: Observed) -> str | None:
    ids = {one.id for one in seen.seen}
    return None if len(ids) >= seen.published else f"{len(ids)} ids for {seen.published} messages"


@check("ID-04", SHOULD, "plain", STANDARD, "An id is short, of visible ASCII, and has no full stop.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        id_ = one.id or ""
        good = 0 < len(id_) <= 255 and all("!" <= character <= "~" for character in id_) and "." not in id_
        return None if good else "it is empty, long, or has other characters"

    return each(seen["plain"], wrong)


@check(
    "ID-06", SHOULD, "enabling", STANDARD, "What is sent once a subscription is enabled again has the id that it had."
)
def _(seen: Observed) -> str | None:
    subject = seen["subject"]
    payload = subject.published[0]
    earlier = {one.id for one in subject.seen[: int(str(seen.facts["before"]))] if payload in one.request.body}
    later = {one.id for one in subject.seen[int(str(seen.facts["before"])) :] if payload in one.request.body}
    if not later:
        return "what was refused did not come again"
    return None if later <= earlier else "the message came under another id"


@check("ID-05", MAY, "retries", CONTRACT, "Attempts are numbered 1, 2, 3 in X-Webhook-Attempt.")
def _(seen: Observed) -> str | None:
    unless_mute(seen)
    for ones in seen.messages:
        numbers = [one.request.header("X-Webhook-Attempt") for one in ones]
        if numbers != [str(n) for n in range(1, len(ones) + 1)]:
            return "a message's attempts are numbered otherwise"
    return None


#: no longer than a time is: what a sender writes there may be any length, and digits that only look like some
_UNIX_SECONDS = re.compile(r"[0-9]{1,15}")
#: seconds by which a timestamp may be off, since a busy machine takes its time between signing and sending
_LATE = 15.0
#: seconds between attempts that cannot be of the same second, however late the second one was on its way
_SECONDS_APART = 2.5


@check("TIME-01", MUST, "signed-by-standard", STANDARD, "The timestamp is in whole Unix seconds, and of now.")
def _(seen: Observed) -> str | None:
    def wrong(one: Seen) -> str | None:
        if not _UNIX_SECONDS.fullmatch(one.timestamp or ""):
            return "there is none, or it is no whole number of seconds"
        off = abs(int(one.timestamp or 0) - one.request.at)
        return None if off <= _LATE else f"it is {off:.0f} s off"

    return each(seen["signed"], wrong)


@check("TIME-02", MUST, "signed-by-standard", STANDARD, "Each attempt has a timestamp of its own.")
def _(seen: Observed) -> str | None:
    unless_mute(seen)
    return _repeats_time(list(seen["signed"].messages.values()))


def _repeats_time(messages: list[list[Seen]]) -> str | None:
    """What is wrong if attempts that are seconds apart, and say when they were made, say the same."""
    for ones in messages:
        for before, after in itertools.combinations(ones, 2):
            apart = after.request.clock - before.request.clock
            if before.timestamp and before.timestamp == after.timestamp and apart > _SECONDS_APART:
                return f"two attempts {apart:.1f} s apart have the same"
    return None


@check("TIME-04", SHOULD, "retries", STANDARD, "Where attempts say when they were made, each says its own time.")
def _(seen: Observed) -> str | None:
    unless_mute(seen)
    return _repeats_time(seen.messages)


@check("TIME-03", MUST, "signed-by-standard", STANDARD, "The timestamp is part of what is signed.")
def _(seen: Observed) -> str | None:
    return each(seen["signed"], lambda one: signature_fault(seen["signed"], "standard", one))
