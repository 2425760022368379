"""What is sent again, when and how often; and where it is not sent."""

from __future__ import annotations

from dispatcher.conformance.sender_examination.checks.judging import (
    MUST,
    SHOULD,
    Unproven,
    all_of,
    check,
    first,
    tries,
    unless_mute,
)
from dispatcher.conformance.sender_examination.scenario import Observed
from dispatcher.conformance.sender_examination.scenarios.attempts import RISING
from dispatcher.conformance.sender_examination.stage import Subject
from dispatcher.conformance.sources import CONTRACT, HTTP, HTTP11, OWASP_SSRF, STANDARD

#: share of a distance by which a dozen of them differ that are spread by chance: with a tenth either way it is about
#: four times as much, and less than this once in forty thousand times
_LEAST_SPREAD = 0.025


@check("RETRY-01", MUST, "retries", STANDARD, "What is answered with 5xx is sent again.")
def _(seen: Observed) -> str | None:
    few = [subject for subject in seen.subjects.values() if len(subject.seen) < 4]
    return f"a message came {len(few[0].seen)} times, not 4" if few else None


@check("RETRY-02", MUST, "retries", STANDARD, "What was answered with 2xx is not sent again.")
def _(seen: Observed) -> str | None:
    if all(len(subject.seen) < 4 for subject in seen.subjects.values()):
        raise Unproven("it shows nothing: no message came the fourth time, which is answered with 2xx")
    many = [subject for subject in seen.subjects.values() if len(subject.seen) > 4]
    return f"a message came {len(many[0].seen)} times, the fourth time with success" if many else None


@check("RETRY-03", SHOULD, "retries", STANDARD, "The distance between attempts grows.")
def _(seen: Observed) -> str | None:
    whole = [gaps for gaps in seen.gaps if len(gaps) >= 3]
    if not whole:
        return "too few attempts came to tell"
    # the shortest of many: a busy machine, or a sender that spares the endpoint, lengthens some and shortens none
    first, last = (min(gaps[at] for gaps in whole) for at in (0, 2))
    # and no longer than it was asked for: at the beginning the machine is at its busiest
    first = min(first, 1.25 * RISING[0])
    return None if last >= 1.5 * first else f"the third is {last:.2f} s, the first {first:.2f} s"


@check(
    "RETRY-04",
    SHOULD,
    "retries",
    STANDARD,
    "The distances are spread by chance, so that attempts do not come in waves.",
)
def _(seen: Observed) -> str | None:
    last = sorted(gaps[2] for gaps in seen.gaps if len(gaps) >= 3)
    if len(last) < 8:
        return "too few attempts came to tell"
    # Of the shorter half: what a busy machine adds goes to the others, and is no chance of the sender's.
    shorter = last[: len(last) // 2]
    spread = shorter[-1] - shorter[0]
    return None if spread >= _LEAST_SPREAD * shorter[0] else f"{len(shorter)} distances are alike within {spread:.3f} s"


@check("RETRY-05", MUST, "exhausted", STANDARD, "The number of attempts is limited.")
def _(seen: Observed) -> str | None:
    return tries(seen["exhausted"], int(str(seen.facts["tries"])))


@check("RETRY-06", SHOULD, "passing", HTTP, "408, 429, 500, 502, 503 and 504 are taken for passing.")
def _(seen: Observed) -> str | None:
    return all_of(seen, lambda subject: tries(subject, 2))


@check(
    "RETRY-07",
    MUST,
    "broken",
    STANDARD,
    "A connection that breaks before a whole answer is a failure, and tried again.",
)
def _(seen: Observed) -> str | None:
    return all_of(seen, lambda subject: tries(subject, 2))


@check("RETRY-08", MUST, "successes", STANDARD, "Every 2xx is a success.")
def _(seen: Observed) -> str | None:
    return all_of(seen, lambda subject: tries(subject, 1))


@check(
    "RETRY-09",
    SHOULD,
    "refusals",
    CONTRACT,
    "What is refused for good (400, 401, 403, 404, 405, 413, 422) is not sent again.",
)
def _(seen: Observed) -> str | None:
    return all_of(seen, lambda subject: tries(subject, 1))


@check("RETRY-10", MUST, "in-between", HTTP, "An answer that is no 2xx is no success.")
def _(seen: Observed) -> str | None:
    return all_of(
        seen, lambda subject: None if len(subject.seen) > 1 else f"it came {len(subject.seen)} times, not again"
    )


@check("RETRY-11", MUST, "gone", STANDARD, "After 410 the message is not sent again.")
def _(seen: Observed) -> str | None:
    return None if seen.facts["before"] == 1 else f"it came {seen.facts['before']} times"


def _waited(subject: Subject, seconds: float) -> str | None:
    gaps = [gap for gaps in subject.gaps for gap in gaps]
    if not gaps:
        return "it was not sent again"
    return None if min(gaps) >= seconds else f"it was sent again after {min(gaps):.2f} s"


@check("RETRY-12", SHOULD, "retry-after", HTTP, "Retry-After in seconds is kept, with 429 and with 503.")
def _(seen: Observed) -> str | None:
    return first(_waited(seen[name], 2.95) for name in ("seconds", "unavailable"))


@check("RETRY-13", SHOULD, "retry-after", HTTP, "Retry-After as a date is kept.")
def _(seen: Observed) -> str | None:
    # a date has whole seconds, so up to one is lost
    return _waited(seen["date"], 2.95)


@check(
    "RETRY-14",
    MUST,
    "retry-after",
    HTTP,
    "Retry-After of the past, of zero, or as garbage neither hastens nor ends the retries.",
)
def _(seen: Observed) -> str | None:
    # the schedule says 1 s, and chance may take a fifth of it, or more
    return first(_waited(seen[name], 0.6) for name in ("past", "zero", "garbage"))


@check("RETRY-15", SHOULD, "neighbours", STANDARD, "The first attempt is prompt.")
def _(seen: Observed) -> str | None:
    delays = seen.facts["delays"]
    assert isinstance(delays, list)
    # the shortest of several: who looks for work every few seconds is slow each time
    return None if min(delays) < 2.0 else f"it took {min(delays):.1f} s"


@check("RETRY-16", MUST, "torn", HTTP11, "An answer that came as a whole counts, whatever becomes of its connection.")
def _(seen: Observed) -> str | None:
    return tries(seen["torn"], 1)


@check("RETRY-17", MUST, "slow", STANDARD, "While an answer may still come, the message is not sent again.")
def _(seen: Observed) -> str | None:
    return tries(seen["slow"], 1)


@check("RETRY-18", SHOULD, "patience", HTTP, "An endpoint that asks to wait holds up no other.")
def _(seen: Observed) -> str | None:
    return None if seen["healthy"].seen else "the other's message did not come within ten seconds"


@check("REDIR-01", MUST, "redirects", OWASP_SSRF, "No redirect is followed.")
def _(seen: Observed) -> str | None:
    unless_mute(seen)
    came = seen["elsewhere"].seen
    return f"{len(came)} requests came to where the redirects point" if came else None


@check("REDIR-02", SHOULD, "redirects", STANDARD, "A redirect is a failure, and tried again where it was sent first.")
def _(seen: Observed) -> str | None:
    return first(
        f"{name}: {text}"
        for name, subject in seen.subjects.items()
        if name != "elsewhere" and (text := tries(subject, 2))
    )


@check("REDIR-03", MUST, "redirects", HTTP, "After a redirect no request tells, by a Referer or otherwise, of the URL.")
def _(seen: Observed) -> str | None:
    if not any(subject.seen for name, subject in seen.subjects.items() if name != "elsewhere"):
        return "no request came"
    paths = [subject.path for subject in seen.subjects.values()]
    for one in seen.seen:
        if one.request.values("Referer"):
            return f"request {one.request.number}: it has a Referer"
        told = [name for name, value in one.request.headers if any(path in value for path in paths)]
        if told:
            return f"request {one.request.number}: the URL stands in {told[0]}"
    return None
