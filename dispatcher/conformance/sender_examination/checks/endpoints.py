"""What an endpoint can do to a sender, what that does to the subscription, and whom a sender does not send to."""

from __future__ import annotations

from dispatcher.conformance.results import Source
from dispatcher.conformance.sender_examination.checks.judging import MUST, SHOULD, Unproven, check, first, tries
from dispatcher.conformance.sender_examination.neighbourhood import ADMITTED, LOOPBACK, MIXED, REBOUND
from dispatcher.conformance.sender_examination.scenario import Observed
from dispatcher.conformance.sender_examination.scenarios.endpoints import DEADLINE
from dispatcher.conformance.sender_examination.stage import Subject
from dispatcher.conformance.sources import CONTRACT, HTTP11, OLD_TLS, OWASP_SSRF, STANDARD, TLS

#: seconds that a sender may need to notice that its time is up
_GRACE = 1.5
#: bytes of an answer that may be taken, those included that wait in the buffers of both systems
_MOST_TAKEN = 24 * 1_048_576


def _ended(subject: Subject) -> str | None:
    if not subject.seen:
        return "no request came"
    # the best of several messages: a busy machine lengthens some, and shortens none
    ended = [one for one in subject.seen if one.answer != "200" and one.lasted is not None]
    if not ended:
        return "no exchange was over after ten seconds"
    lasted = min(one.lasted for one in ended if one.lasted is not None)
    if lasted > DEADLINE + _GRACE:
        return f"it lasted {lasted:.1f} s, with a deadline of {DEADLINE:g} s"
    taken = min(one.taken for one in ended)
    return f"{taken / 1_048_576:.0f} MiB of the answer were taken" if taken > _MOST_TAKEN else None


def _of_endless(number: int, fault: str, title: str, source: Source = CONTRACT) -> None:
    @check(f"LIMIT-{number:02}", MUST, "endless", source, title)
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


@check("LIMIT-08", MUST, "endless", STANDARD, "An attempt that ran into its deadline is tried again.")
def _(seen: Observed) -> str | None:
    # How often is not asked: the deadline is a second, and on a busy machine the next answer may be late, too.
    found = ((name, tries(seen[name], 2, or_more=True)) for name in ("hang", "slow-headers"))
    return first(f"{name}: {text}" for name, text in found if text)


@check("LIMIT-09", SHOULD, "neighbours", STANDARD, "An endpoint that hangs does not hold up another.")
def _(seen: Observed) -> str | None:
    delays = seen.facts["delays"]
    assert isinstance(delays, list)
    if len(seen["healthy"].seen) < len(seen["healthy"].published):
        return "not every message came"
    return None if max(delays) < 5.0 else f"a message of the other took {max(delays):.1f} s"


@check(
    "LIMIT-11",
    MUST,
    "endless",
    STANDARD,
    "What never answers as a whole is not sent more often than the schedule says.",
)
def _(seen: Observed) -> str | None:
    if not (seen["drip"].seen and seen["huge"].seen):
        raise Unproven("it shows nothing: no request came")
    most = 2
    for name in ("drip", "huge"):
        many = [len(ones) for ones in seen[name].messages.values() if len(ones) > most]
        if many:
            return f"{name}: a message came {many[0]} times; the schedule has {most}"
    return None


@check(
    "LIMIT-10",
    MUST,
    "second-answer",
    HTTP11,
    "An answer that nobody asked for is not taken for that of the next request.",
)
def _(seen: Observed) -> str | None:
    # Who takes it for that counts the next message as answered, and does not send it.
    missing = len(seen["second-answer"].published) - len(seen["second-answer"].messages)
    return f"{missing} messages did not come" if missing else tries(seen["second-answer"], 1)


@check("HEALTH-01", SHOULD, "gone", STANDARD, "After 410 the subscription is disabled.")
def _(seen: Observed) -> str | None:
    return _disabled(seen)


def _disabled(seen: Observed) -> str | None:
    if not seen.facts["was_active"]:
        return "it was not active before"
    return "it is active" if seen.facts["active"] else None


def _went_on(seen: Observed) -> str | None:
    """What came after an answer that was to end it."""
    before = int(str(seen.facts["before"]))
    later = len(seen["subject"].seen) - before
    if not before:
        raise Unproven("it shows nothing: no request came that could be answered so")
    return f"{later} requests came" if later else None


@check("HEALTH-02", SHOULD, "gone", STANDARD, "After 410 nothing more is sent.")
def _(seen: Observed) -> str | None:
    return _went_on(seen)


@check("HEALTH-03", SHOULD, "unauthorized", CONTRACT, "An endpoint that refuses is disabled.")
def _(seen: Observed) -> str | None:
    return _disabled(seen)


@check("HEALTH-04", SHOULD, "unauthorized", CONTRACT, "To a disabled endpoint nothing is sent.")
def _(seen: Observed) -> str | None:
    return _went_on(seen)


@check("HEALTH-05", SHOULD, "enabling", CONTRACT, "What was published while it was disabled comes after it is enabled.")
def _(seen: Observed) -> str | None:
    subject = seen["subject"]
    missing = subject.missing(int(str(seen.facts["before"])))
    return f"{len(missing)} of {len(subject.published)} payloads did not come" if missing else None


@check("HEALTH-06", SHOULD, "enabling", CONTRACT, "Once enabled it is active.")
def _(seen: Observed) -> str | None:
    return None if seen.facts["active"] else "it is not"


def _unless_no_tls(seen: Observed, wrong: str | None) -> str | None:
    """What was wrong. That nothing was means something only if the sender does send by TLS."""
    if wrong is None and not seen["good"].seen:
        raise Unproven("it shows nothing while TLS-04 fails: no request came")
    return wrong


@check("TLS-01", MUST, "tls", TLS, "An expired certificate is refused.")
def _(seen: Observed) -> str | None:
    return _unless_no_tls(seen, "a request came" if seen["expired"].seen else None)


@check("TLS-02", MUST, "tls", TLS, "A certificate for another host is refused.")
def _(seen: Observed) -> str | None:
    return _unless_no_tls(seen, "a request came" if seen["other-host"].seen else None)


@check("TLS-03", MUST, "tls", TLS, "A certificate that nobody vouches for is refused.")
def _(seen: Observed) -> str | None:
    return _unless_no_tls(seen, "a request came" if seen["self-signed"].seen else None)


@check("TLS-04", MUST, "tls", TLS, "A certificate that is in order is accepted.")
def _(seen: Observed) -> str | None:
    return None if seen["good"].seen else "no request came"


@check("TLS-05", MUST, "tls", OLD_TLS, "An endpoint that speaks nothing newer than TLS 1.1 is refused.")
def _(seen: Observed) -> str | None:
    old = first(f"a request came by TLS {version}" for version in ("1.0", "1.1") if seen[f"tls-{version}"].seen)
    return _unless_no_tls(seen, old)


@check("EGRESS-01", MUST, "own-machine", OWASP_SSRF, "As in production, nothing is sent to the sender's own machine.")
def _(seen: Observed) -> str | None:
    if seen.seen:
        return f"{len(seen.seen)} requests came"
    return f"{seen.facts['dialled']} connections came" if seen.facts["dialled"] else None


@check(
    "EGRESS-02",
    SHOULD,
    "own-machine",
    OWASP_SSRF,
    "A URL that names a loopback address, however it is spelt, is refused when it is given.",
)
def _(seen: Observed) -> str | None:
    taken = seen.facts["taken"]
    assert isinstance(taken, list)
    return f"taken: {', '.join(sorted(set(taken)))}" if taken else None


def _not_delivered(seen: Observed) -> str | None:
    """Why it cannot be told that names are asked for and messages are sent."""
    taken = seen.facts["taken"]
    assert isinstance(taken, set)
    if "admitted-https-1" not in taken:
        return "the URL was not taken"
    missing = [one for one in _of_kind(seen, "admitted") if one.name in taken and not one.seen]
    return f"{missing[0].name}: no request came" if missing else None


def _of_kind(seen: Observed, kind: str) -> list[Subject]:
    return [subject for name, subject in seen.subjects.items() if name.startswith(f"{kind}-")]


def _gone_astray(seen: Observed, kind: str, address: str) -> str | None:
    """What came to an address that nobody admits, by names of one kind."""
    found = ((one.name, sorted({request.at for request in one.seen} - {ADMITTED})) for one in _of_kind(seen, kind))
    text = first(f"{name}: a request came to {', '.join(places)}" for name, places in found if places)
    dialled = seen.facts["dialled"]
    assert isinstance(dialled, dict)
    return text or (f"{dialled[address]} connections came to {address}" if dialled[address] else None)


def _unless_unproven(seen: Observed, wrong: str | None) -> str | None:
    """What was wrong. That nothing was means something only if the sender does send as in production."""
    unproven = _not_delivered(seen)
    if wrong is None and unproven:
        raise Unproven(f"it shows nothing while EGRESS-03 fails: {unproven}")
    return wrong


@check(
    "EGRESS-03", SHOULD, "names", OWASP_SSRF, "A name that leads to an address which the operator admits is sent to."
)
def _(seen: Observed) -> str | None:
    return _not_delivered(seen)


@check(
    "EGRESS-04", MUST, "names", OWASP_SSRF, "A name that leads to loopback is not connected to, though it was taken."
)
def _(seen: Observed) -> str | None:
    return _unless_unproven(seen, _gone_astray(seen, "loopback", LOOPBACK))


@check(
    "EGRESS-05",
    MUST,
    "names",
    OWASP_SSRF,
    "A name that leads elsewhere once it was looked at is not followed there (DNS rebinding).",
)
def _(seen: Observed) -> str | None:
    return _unless_unproven(seen, _gone_astray(seen, "rebound", REBOUND))


@check("EGRESS-06", MUST, "names", OWASP_SSRF, "Of a name's addresses none is connected to that is refused by itself.")
def _(seen: Observed) -> str | None:
    return _unless_unproven(seen, _gone_astray(seen, "mixed", MIXED) or _gone_astray(seen, "apart", MIXED))


@check("EGRESS-07", SHOULD, "names", OWASP_SSRF, "A name with one address that is refused is sent nothing at all.")
def _(seen: Observed) -> str | None:
    together, apart = ([one for one in _of_kind(seen, kind) if one.seen] for kind in ("mixed", "apart"))
    # A sender that was told of one family in time, and not of the other, has met no bad address.
    sent = [*together, *(apart if len(apart) > 1 else ())]
    text = f"{sent[0].name}: a request came to {sent[0].seen[0].at}" if sent else None
    return _unless_unproven(seen, _gone_astray(seen, "mixed", MIXED) or text)
