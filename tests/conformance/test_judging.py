"""Judges look at whatever came: at nothing, and at what no honest sender would send."""

from __future__ import annotations

import pytest

from dispatcher.conformance.sender_examination.checks import CHECKS
from dispatcher.conformance.sender_examination.checks.judging import Unproven
from dispatcher.conformance.sender_examination.scenario import Observed
from dispatcher.conformance.sender_examination.senders import Names
from dispatcher.conformance.sender_examination.stage import STRUCTURED, Seen, Subject
from dispatcher.conformance.wire.requests import Headers, Received

#: what a check is asked about, where nothing came: what was seen of which subjects, and what else was found out
MUTE: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    **dict.fromkeys(
        ("HTTP-15", "BODY-03", "ID-02", "ID-05", "TIME-04", "RETRY-02"), (("endpoint-1", "endpoint-2"), {})
    ),
    **dict.fromkeys(("TIME-02", "SIGN-29"), (("signed", "other"), {})),
    "REDIR-01": (("elsewhere", "301"), {}),
    "LIMIT-11": (("hang", "drip", "huge"), {}),
    **dict.fromkeys(("HEALTH-02", "HEALTH-04"), (("subject",), {"before": 0})),
    **dict.fromkeys(
        ("TLS-01", "TLS-02", "TLS-03", "TLS-05"),
        (("good", "expired", "other-host", "self-signed", "tls-1.0", "tls-1.1"), {}),
    ),
}


def subject(name: str, *seen: Seen, published: bytes = b'{"n": 1}') -> Subject:
    made = Subject(name=name, url="http://127.0.0.1:9/x", path="/x", event="e", secret="whsec_QUJD", script=("200",))
    made.published.append(published)
    made.seen.extend(seen)
    return made


def seen(number: int = 1, *, headers: Headers = (), body: bytes = b"{}") -> Seen:
    request = Received(
        number=number, at=1_700_000_000.0, clock=float(number), connection=1, remote="127.0.0.1", method="POST",
        target="/x", headers=headers, body=body, raw=body,
    )  # fmt: skip
    return Seen(request=request, answer="200", names=Names())


@pytest.mark.parametrize("id_", MUTE)
def test_where_nothing_came_nothing_is_passed(id_: str) -> None:
    names, facts = MUTE[id_]
    observed = Observed(subjects={name: subject(name) for name in names}, facts=facts)
    with pytest.raises(Unproven, match="it shows nothing"):
        CHECKS[id_].judge(observed)


def test_what_was_never_taken_shows_nothing_of_what_follows() -> None:
    """A sender that sends once is never answered 2xx, which is the fourth answer."""
    once = Observed(subjects={"endpoint-1": subject("endpoint-1", seen())})
    with pytest.raises(Unproven, match="no message came the fourth time"):
        CHECKS["RETRY-02"].judge(once)
    five = [seen(number, headers=(("webhook-id", "a"),)) for number in range(1, 6)]
    often = Observed(subjects={"endpoint-1": subject("endpoint-1", *five)})
    assert CHECKS["RETRY-02"].judge(often) == "a message came 5 times, the fourth time with success"


def test_what_came_is_wrong_whatever_else_is_missing() -> None:
    """An expired certificate that is accepted is one, also by a sender that refuses the good one."""
    names = ("good", "expired", "other-host", "self-signed", "tls-1.0", "tls-1.1")
    subjects = {name: subject(name) for name in names} | {"expired": subject("expired", seen())}
    assert CHECKS["TLS-01"].judge(Observed(subjects=subjects)) == "a request came"


@pytest.mark.parametrize("text", ["\xb2", "\xb9\xb2\xb3", "9" * 400, "9" * 5_000, "", "1e9", "-1", "1700000000.0"])
def test_a_time_that_is_none_is_a_fault_and_no_crash(text: str) -> None:
    one = seen(headers=(("webhook-timestamp", text),))
    assert "it is no whole number" in str(
        CHECKS["TIME-01"].judge(Observed(subjects={"signed": subject("signed", one)}))
    )


def test_milliseconds_are_told_by_how_far_they_are_off() -> None:
    one = seen(headers=(("webhook-timestamp", "1700000000000"),))
    assert "s off" in str(CHECKS["TIME-01"].judge(Observed(subjects={"signed": subject("signed", one)})))


def test_a_time_of_now_is_one() -> None:
    one = seen(headers=(("webhook-timestamp", "1700000001"),))
    assert CHECKS["TIME-01"].judge(Observed(subjects={"signed": subject("signed", one)})) is None


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 600 + b"]" * 600,
        b'{"data": ' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"data": 1e99999999999999999999}',
        b"1e99999999999999999999",
        b'{"data": ' + b"9" * 5_000 + b"}",
        b"\xff",
    ],
)
@pytest.mark.parametrize("id_", ["CE-13", "CE-22", "CE-24", "CE-25", "CE-26", "CE-28", "CE-29"])
def test_a_body_that_cannot_be_read_is_a_fault_and_no_crash(id_: str, body: bytes) -> None:
    kind = STRUCTURED if id_ > "CE-2" else "application/json"
    one = seen(headers=(("Content-Type", kind),), body=body)
    place = subject("payload-1", one, seen(2, headers=(("Content-Type", kind),), body=body))
    wrong = CHECKS[id_].judge(Observed(subjects={"payload-1": place}))
    assert wrong or id_ in {"CE-26", "CE-28", "CE-29"}


def test_json_without_end_is_no_json() -> None:
    one = seen(headers=(("Content-Type", "application/json"),), body=b"[" * 100_000)
    wrong = CHECKS["BODY-01"].judge(Observed(subjects={"plain": subject("plain", one)}))
    assert wrong == "request 1: it cannot be read"
