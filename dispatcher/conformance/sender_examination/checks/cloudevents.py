"""CloudEvents: who agreed to be sent to, and how fast; and the form of an event in binary and in structured mode."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

from dispatcher.conformance.sender_examination.checks.judging import MUST, SHOULD, all_of, check, each, first
from dispatcher.conformance.sender_examination.handshakes import ORIGIN
from dispatcher.conformance.sender_examination.scenario import Observed
from dispatcher.conformance.sender_examination.scenarios.cloudevents import DENIALS, GRANTED_RATE, GRANTS
from dispatcher.conformance.sender_examination.stage import STRUCTURED, Seen, Subject
from dispatcher.conformance.sources import CLOUDEVENTS, CLOUDEVENTS_CORE, CLOUDEVENTS_HTTP, CLOUDEVENTS_JSON
from dispatcher.conformance.wire.requests import Received

#: attributes that every event has
_REQUIRED = ("specversion", "id", "source", "type")
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)
_POSITIVE = re.compile(r"0*[1-9][0-9]*")
#: RFC 3986: what may stand in a reference to a URI
_URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_ATTRIBUTE = re.compile(r"[a-z0-9]+")


# --- handshakes -------------------------------------------------------------------------------------------


def _places(seen: Observed, names: Iterable[str]) -> Iterator[tuple[str, Subject]]:
    return ((name, seen[name.replace(" ", "-")]) for name in names)


def _each_handshake(seen: Observed, wrong: Callable[[Subject, Received], str | None]) -> str | None:
    """What is wrong with the first handshake that has something wrong; also where none came."""

    def judge(subject: Subject) -> str | None:
        if not subject.handshakes:
            return f"no OPTIONS with {ORIGIN} came"
        return first(wrong(subject, one.request) for one in subject.handshakes)

    return all_of(seen, judge)


@check("CE-01", MUST, "handshake", CLOUDEVENTS, "A handshake is an OPTIONS request to the very URL that is subscribed.")
def _(seen: Observed) -> str | None:
    def wrong(subject: Subject, request: Received) -> str | None:
        target = "/" + subject.url.split("/", 3)[3]
        return None if request.target == target else "the target is not that of the URL"

    return _each_handshake(seen, wrong)


@check("CE-02", MUST, "handshake", CLOUDEVENTS, "WebHook-Request-Origin is one DNS name.")
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, request: Received) -> str | None:
        values = request.values(ORIGIN)
        if len(values) > 1:
            return f"{ORIGIN} is there {len(values)} times"
        return None if _DNS_NAME.fullmatch(values[0]) else "it is no DNS name"

    return _each_handshake(seen, wrong)


@check(
    "CE-03", MUST, "handshake", CLOUDEVENTS, "WebHook-Request-Rate, where it is there, is a whole number above zero."
)
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, request: Received) -> str | None:
        values = request.values("WebHook-Request-Rate")
        return None if all(_POSITIVE.fullmatch(value) for value in values[:1]) and len(values) < 2 else "it is not"

    return _each_handshake(seen, wrong)


@check("CE-04", MUST, "handshake", CLOUDEVENTS, "Nothing is sent to who did not grant it, whatever the status is.")
def _(seen: Observed) -> str | None:
    def wrong(name: str, subject: Subject) -> str | None:
        if not subject.handshakes:
            return f"{name}: no handshake came"
        return f"{name}: {len(subject.seen)} requests came" if subject.seen else None

    return first(wrong(name, subject) for name, subject in _places(seen, DENIALS))


@check("CE-05", MUST, "late-grant", CLOUDEVENTS, "Nothing is sent before the answer that grants it.")
def _(seen: Observed) -> str | None:
    late = seen["late"]
    answers = [one.answered for one in late.handshakes if one.answered is not None]
    if not answers:
        return "no handshake was waited for"
    early = [one for one in late.seen if one.request.clock < min(answers)]
    return f"{len(early)} requests came before" if early else None


@check("CE-06", MUST, "handshake", CLOUDEVENTS, "Who grants it, to the sender's own name or to any, is sent to.")
def _(seen: Observed) -> str | None:
    return first(
        f"{name}: {len(subject.messages)} of 2 messages came"
        for name, subject in _places(seen, GRANTS)
        if len(subject.messages) < 2
    )


@check("CE-07", MUST, "handshake", CLOUDEVENTS, "Each delivery names the origin that was granted.")
def _(seen: Observed) -> str | None:
    def wrong(subject: Subject) -> str | None:
        asked = {value for one in subject.handshakes for value in one.request.values(ORIGIN)}
        return each(
            subject,
            lambda one: None if set(one.request.values(ORIGIN)) == asked else f"{ORIGIN} is not that of the handshake",
        )

    return first(f"{name}: {text}" for name, subject in _places(seen, GRANTS) if (text := wrong(subject)))


@check("CE-08", SHOULD, "granted-rate", CLOUDEVENTS, "A granted rate is kept.")
def _(seen: Observed) -> str | None:
    came = seen["rate"].seen
    if not came:
        return "no request came"
    # Who counts by the clock's minutes may send twice the rate around the turn of one; nobody is ever too slow.
    most = 2 * GRANTED_RATE
    if len(came) <= most:
        return None
    windows = (after.request.clock - before.request.clock for before, after in zip(came, came[most:], strict=False))
    return f"{most + 1} requests came within {min(windows):.1f} s, where {GRANTED_RATE} a minute were granted"


# --- both modes -------------------------------------------------------------------------------------------


def _same_id(seen: Observed, id_of: Callable[[Seen], object]) -> str | None:
    def judge(subject: Subject) -> str | None:
        if len(subject.seen) < 2:
            return "no second attempt came"
        ids = {id_of(one) for one in subject.seen}
        return None if len(ids) == 1 and None not in ids else "it changed, or is missing"

    return all_of(seen, judge)


def _each(seen: Observed, wrong: Callable[[Subject, Seen], str | None]) -> str | None:
    return all_of(seen, lambda subject: each(subject, lambda one: wrong(subject, one)))


def _value(text: bytes) -> Any:
    """A JSON value, whatever its spelling. Raises ValueError."""
    try:
        return _plain(json.loads(text, parse_float=Decimal))
    except (ArithmeticError, RecursionError):
        raise ValueError("no JSON that anybody can read") from None


def _plain(value: Any) -> Any:
    """With types that tell true from 1."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return (isinstance(value, bool), value)


# --- binary mode ------------------------------------------------------------------------------------------


def _attribute(one: Seen, name: str) -> str | None:
    return one.request.header(f"ce-{name}")


@check(
    "CE-11",
    MUST,
    "cloudevents-binary",
    CLOUDEVENTS_HTTP,
    "In binary mode ce-id, ce-source, ce-type and ce-specversion are there, once.",
)
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, one: Seen) -> str | None:
        return first(
            f"ce-{name} is missing, empty, or there twice"
            for name in _REQUIRED
            if len(values := one.request.values(f"ce-{name}")) != 1 or not values[0]
        )

    return _each(seen, wrong)


@check(
    "CE-12",
    MUST,
    "cloudevents-binary",
    CLOUDEVENTS_CORE,
    "In binary mode ce-specversion is 1.0, and ce-source a reference to a URI.",
)
def _(seen: Observed) -> str | None:
    return _each(seen, lambda _subject, one: _wrong_core(_attribute(one, "specversion"), _attribute(one, "source")))


def _wrong_core(version: object, source: object) -> str | None:
    if version != "1.0":
        return "the version is another"
    good = isinstance(source, str) and _URI_REFERENCE.fullmatch(source)
    return None if good else "the source is none"


@check(
    "CE-13",
    MUST,
    "cloudevents-binary",
    CLOUDEVENTS_HTTP,
    "In binary mode Content-Type is that of the data, and the body is the data.",
)
def _(seen: Observed) -> str | None:
    def wrong(subject: Subject, one: Seen) -> str | None:
        kind = (one.request.header("Content-Type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return f"Content-Type is {kind[:40] or 'missing'}"
        return _wrong_data(subject, one.request.body)

    return _each(seen, wrong)


def _wrong_data(subject: Subject, text: bytes) -> str | None:
    try:
        same = _value(text) == _value(subject.published[0])
    except ValueError:
        return "the data is no JSON"
    return None if same else "the data is not what was published"


@check("CE-14", MUST, "cloudevents-binary", CLOUDEVENTS_CORE, "In binary mode ce-id stays the same over all attempts.")
def _(seen: Observed) -> str | None:
    return _same_id(seen, lambda one: _attribute(one, "id"))


@check(
    "CE-15",
    MUST,
    "cloudevents-binary",
    CLOUDEVENTS_HTTP,
    "In binary mode attributes are lower-case letters and digits, their values printable ASCII.",
)
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, one: Seen) -> str | None:
        for name, value in one.request.headers:
            if name.lower().startswith("ce-"):
                if not _ATTRIBUTE.fullmatch(name[3:].lower()):
                    return "the name of an attribute has other characters"
                if not re.fullmatch(r"(?:[!#$&-~]|%[0-9A-Fa-f]{2})*", value):
                    return f"{name} is not percent-encoded"
        return None

    return _each(seen, wrong)


# --- structured mode --------------------------------------------------------------------------------------


def _event(one: Seen) -> dict[str, Any] | None:
    try:
        found = json.loads(one.request.body, parse_float=Decimal)
    except (ArithmeticError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _each_event(seen: Observed, wrong: Callable[[Subject, dict[str, Any]], str | None]) -> str | None:
    def judge(subject: Subject, one: Seen) -> str | None:
        event = _event(one)
        return "the body is no JSON object" if event is None else wrong(subject, event)

    return _each(seen, judge)


@check("CE-21", MUST, "cloudevents-structured", CLOUDEVENTS_HTTP, f"In structured mode Content-Type is {STRUCTURED}.")
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, one: Seen) -> str | None:
        kind = (one.request.header("Content-Type") or "").partition(";")[0].strip().lower()
        return None if kind == STRUCTURED else f"it is {kind[:40] or 'missing'}"

    return _each(seen, wrong)


@check(
    "CE-22",
    MUST,
    "cloudevents-structured",
    CLOUDEVENTS_JSON,
    "In structured mode id, source, type and specversion are there, as texts.",
)
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, event: dict[str, Any]) -> str | None:
        return first(
            f"{name} is missing, empty, or no text"
            for name in _REQUIRED
            if not isinstance(event.get(name), str) or not event[name]
        )

    return _each_event(seen, wrong)


@check(
    "CE-23",
    MUST,
    "cloudevents-structured",
    CLOUDEVENTS_CORE,
    "In structured mode specversion is 1.0, and source a reference to a URI.",
)
def _(seen: Observed) -> str | None:
    return _each_event(seen, lambda _subject, event: _wrong_core(event.get("specversion"), event.get("source")))


@check(
    "CE-24",
    MUST,
    "cloudevents-structured",
    CLOUDEVENTS_JSON,
    "In structured mode the data is the JSON that was published, not a text of it.",
)
def _(seen: Observed) -> str | None:
    def wrong(subject: Subject, event: dict[str, Any]) -> str | None:
        if "data_base64" in event:
            return _wrong_base64(subject, event["data_base64"])
        if "data" not in event:
            return "there is no data"
        try:
            same = _plain(event["data"]) == _value(subject.published[0])
        except RecursionError:
            same = False
        return None if same else "the data is not what was published"

    return _each_event(seen, wrong)


def _wrong_base64(subject: Subject, text: object) -> str | None:
    """A sender to which data is bytes may write it so (JSON event format, section 3.1)."""
    try:
        return _wrong_data(subject, base64.b64decode(str(text), validate=True))
    except ValueError:
        return "data_base64 is no base64"


@check(
    "CE-25",
    MUST,
    "cloudevents-structured",
    CLOUDEVENTS_CORE,
    "In structured mode the id stays the same over all attempts.",
)
def _(seen: Observed) -> str | None:
    return _same_id(seen, lambda one: (_event(one) or {}).get("id"))


@check(
    "CE-26",
    MUST,
    "cloudevents-structured",
    CLOUDEVENTS_CORE,
    "In structured mode attributes are named by lower-case letters and digits.",
)
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, event: dict[str, Any]) -> str | None:
        odd = [name for name in event if not _ATTRIBUTE.fullmatch(name) and name != "data_base64"]
        return "a name has other characters" if odd else None

    return _each_event(seen, wrong)


@check(
    "CE-27",
    MUST,
    "cloudevents-structured",
    CLOUDEVENTS_JSON,
    "In structured mode datacontenttype, where it is there, says JSON.",
)
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, event: dict[str, Any]) -> str | None:
        kind = event.get("datacontenttype", "application/json")
        name = kind.partition(";")[0].strip().lower() if isinstance(kind, str) else ""
        return None if name == "application/json" or name.endswith("+json") else "it is another"

    return _each_event(seen, wrong)


@check("CE-28", MUST, "cloudevents-structured", CLOUDEVENTS_CORE, "Different events of one source have different ids.")
def _(seen: Observed) -> str | None:
    keys = [
        {(event.get("source"), event.get("id")) for one in subject.seen if (event := _event(one))}
        for subject in seen.subjects.values()
    ]
    if not all(keys):
        return "no request came, or no event in one"
    shared = [mine & other for mine, other in itertools.combinations(keys, 2) if mine & other]
    return "two events have the same" if shared else None


@check(
    "CE-29", SHOULD, "cloudevents-structured", CLOUDEVENTS_JSON, "In structured mode JSON is JSON, and not in base64."
)
def _(seen: Observed) -> str | None:
    def wrong(_subject: Subject, event: dict[str, Any]) -> str | None:
        if "data_base64" in event:
            return "it is in base64"
        return None if "data" in event else "there is no data"

    return _each_event(seen, wrong)
