"""What an answer means for a delivery, and when to try again. Pure: values in, a decision out.

What it means for the subscription that a delivery belongs to, `subscriptions.health` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from dispatcher.models import DeliveryState, Mark, Outcome
from subscriptions.health import Kind

#: the most that chance lengthens or shortens a delay, as a part of it
JITTER = 0.2
#: seconds before the end of a window when the last try starts, so that its answer can still count
WINDOW_MARGIN = 30.0
#: seconds; a window shrinks no delay below this
MIN_DELAY = 1.0
#: seconds; whoever asks for a longer pause gets no further try
MAX_RETRY_AFTER = 86_400.0
#: interrupted attempts in a row after which the delivery itself is held to blame
POISON_AFTER = 10
#: interrupted attempts in a row from which on it waits apart from others
SUSPECT_AFTER = 3
#: seconds, and the most that chance lengthens or shortens them, as a part
MAX_SUSPICION_DELAY = 120.0
SUSPICION_JITTER = 0.7
#: egress refusals in a row after which the address is taken to be what it is
EGRESS_REFUSALS = 3

#: 4xx statuses that speak about this moment, not about the request
RETRIED_4XX = frozenset({408, 423, 425, 429})

# why no further try is made
ABORTED = "aborted"
EGRESS = "egress"
GONE = "gone"
REJECTED = "rejected"

#: what a reason for no further try says about the endpoint; a message that was aborted says nothing
_KINDS = {None: Kind.FAILURE, REJECTED: Kind.REFUSAL, GONE: Kind.GONE, EGRESS: Kind.EGRESS, ABORTED: None}

#: seconds; a longer Retry-After is cut to this, which is beyond any limit of ours (100 years)
_RETRY_AFTER_CEILING = 3_155_760_000.0


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one attempt came back with."""

    #: how the attempt ended
    outcome: Outcome
    #: the HTTP status, if there was a complete answer
    status: int | None = None
    #: seconds from now, from the Retry-After header
    retry_after: float | None = None
    #: whether the answer had the header `webhook-delivery: abort-message`
    abort: bool = False
    #: whether it had `webhook-delivery: disable`
    disable: bool = False
    #: the request was signed with the newest secret where only one signature fits, and an older one is still valid
    other_secret: bool = False


class History(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What came before this attempt."""

    #: failed attempts so far
    failures: int = 0
    #: how the attempt before this one ended
    last_outcome: Outcome | None = None
    #: how many times in a row `last_outcome` came
    repeats: int = 0
    #: what was asked of the delivery while this attempt ran
    mark: Mark | None = None
    #: this attempt was signed with the older of two secrets, since the newer one was refused
    other_secret: bool = False


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What becomes of the delivery."""

    #: the state it goes to
    state: DeliveryState
    #: seconds until the next try; set exactly when the state is `pending`
    delay: float | None = None
    #: why it ended, as a short slug; None while it is pending, and when it is delivered
    reason: str | None = None
    #: seconds for which the lane that sent it sends nothing, from Retry-After
    pause: float | None = None
    #: failed attempts, this one included if it counts as one
    failures: int
    #: how many times in a row this attempt's outcome has come; 0 after a change of URL, which starts anew
    repeats: int
    #: the next attempt is to be signed with the older secret
    other_secret: bool = False


def decide(
    answer: Answer,
    history: History,
    *,
    schedule: Sequence[float],
    now: float,
    window_end: float | None,
    jitter: float,
    disabled: bool = False,
) -> Decision:
    """What becomes of a delivery after this answer.

    `schedule` is in seconds, `now` and `window_end` are Unix seconds, `jitter` is a random number in -1…1.
    A 2xx delivers whatever else was asked; then what was asked of the delivery counts, then the answer. A try
    that is due at once (after an interruption, or for a new URL) may start until the window ends, a scheduled
    one until 30 s before. `disabled` tells that its subscription is, by this answer or before it: then what would
    go on, or be refused, is held.
    """
    if answer.outcome is Outcome.SUCCESS:
        return _decision(DeliveryState.DELIVERED, answer, history, counts=False)
    if history.mark is not None:
        return _apply_mark(history.mark, answer, history, now=now, window_end=window_end)
    if answer.outcome is Outcome.INTERRUPTED:
        decision = _after_interruption(answer, history, now=now, window_end=window_end, jitter=jitter)
    elif wants_other_secret(answer, history) and not disabled:
        decision = _decision(DeliveryState.PENDING, answer, history, delay=0.0, counts=False, other_secret=True)
    else:
        reason = refusal(answer, history)
        if reason == REJECTED and disabled:
            return _decision(DeliveryState.HELD, answer, history)
        if reason is not None:
            return _decision(DeliveryState.REJECTED, answer, history, reason=reason)
        decision = _next_try(answer, history, schedule=schedule, now=now, window_end=window_end, jitter=jitter)
    if disabled and decision.state is DeliveryState.PENDING:
        return replace(decision, state=DeliveryState.HELD, delay=None)
    return decision


def wants_other_secret(answer: Answer, history: History) -> bool:
    """Whether the older secret is tried before a refusal counts: the receiver may not have the new one yet."""
    return answer.other_secret and not history.other_secret and refusal(answer, history) == REJECTED


def health_kind(answer: Answer, history: History) -> Kind | None:
    """What an answer says about the subscription's endpoint; None if it says nothing."""
    if answer.outcome is Outcome.SUCCESS:
        return Kind.SUCCESS
    if answer.outcome in {Outcome.INTERRUPTED, Outcome.INTERNAL_ERROR}:
        return None
    return _KINDS[refusal(answer, history)]


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds from now that a Retry-After header asks for (RFC 9110, section 10.2.3).

    None where it asks for nothing: no header, garbage, zero, or a date that is not in the future.
    """
    if value is None:
        return None
    value = value.strip(" \t")
    if value.isascii() and value.isdigit():
        digits = value.lstrip("0")
        # cut by length first: int() refuses thousands of digits
        seconds = float(digits or 0) if len(digits) <= 12 else _RETRY_AFTER_CEILING
    else:
        moment = _http_date(value, now=now)
        if moment is None:
            return None
        seconds = moment - now
    return min(seconds, _RETRY_AFTER_CEILING) if seconds > 0 else None


# --- the stages of decide ---------------------------------------------------------------------------------


def _apply_mark(mark: Mark, answer: Answer, history: History, *, now: float, window_end: float | None) -> Decision:
    if mark is Mark.CANCEL:
        return _decision(DeliveryState.CANCELLED, answer, history, reason="cancelled", counts=False)
    if _is_over(window_end, now):
        return _decision(DeliveryState.EXPIRED, answer, history, reason="window", counts=False)
    # what the old URL answered says nothing about the new one
    return _decision(DeliveryState.PENDING, answer, history, delay=0.0, counts=False, repeats=0)


def _after_interruption(
    answer: Answer, history: History, *, now: float, window_end: float | None, jitter: float
) -> Decision:
    repeats = _repeats(answer, history)
    if repeats >= POISON_AFTER:
        return _decision(DeliveryState.EXHAUSTED, answer, history, reason="poison", counts=False)
    if _is_over(window_end, now):
        return _decision(DeliveryState.EXPIRED, answer, history, reason="window", counts=False)
    delay = suspicion_delay(repeats, jitter=jitter)
    if window_end is not None:
        delay = min(delay, (window_end - now) / 2)
    return _decision(DeliveryState.PENDING, answer, history, delay=delay, counts=False)


def suspicion_delay(interruptions: int, *, jitter: float) -> float:
    """Seconds that something waits which was interrupted so many times in a row.

    At first nothing. Then longer and longer, and spread out: what ends our processes must meet fewer and fewer
    of those that were only near it, so that they are done before they are suspected for good.
    """
    if interruptions < SUSPECT_AFTER:
        return 0.0
    return min(2.0 ** (interruptions - SUSPECT_AFTER + 1), MAX_SUSPICION_DELAY) * (1 + SUSPICION_JITTER * jitter)


def refusal(answer: Answer, history: History) -> str | None:
    """The reason why no further try is made, if this answer is a refusal for good."""
    if answer.abort:
        return ABORTED
    if answer.outcome is Outcome.EGRESS_REFUSED and _repeats(answer, history) >= EGRESS_REFUSALS:
        return EGRESS
    if _is_retryable(answer):
        return None
    return GONE if answer.status == 410 else REJECTED


def _next_try(
    answer: Answer,
    history: History,
    *,
    schedule: Sequence[float],
    now: float,
    window_end: float | None,
    jitter: float,
) -> Decision:
    remaining = schedule[history.failures :]
    if not remaining:
        return _decision(DeliveryState.EXHAUSTED, answer, history, reason="schedule")
    retry_after = answer.retry_after or 0.0
    if retry_after > MAX_RETRY_AFTER:
        return _decision(DeliveryState.EXHAUSTED, answer, history, reason="retry-after")
    shortest = min(remaining[0], MIN_DELAY)
    if window_end is None:
        delay = max(_jittered(remaining[0], jitter), shortest, retry_after)
    else:
        room = window_end - now - WINDOW_MARGIN
        if room < max(shortest, retry_after):
            return _decision(DeliveryState.EXPIRED, answer, history, reason="window")
        delay = max(_jittered(_shrunk(remaining, room), jitter), shortest)
        delay = max(min(delay, room), retry_after)
    return _decision(DeliveryState.PENDING, answer, history, delay=delay)


def _decision(
    state: DeliveryState,
    answer: Answer,
    history: History,
    *,
    delay: float | None = None,
    reason: str | None = None,
    counts: bool = True,
    repeats: int | None = None,
    other_secret: bool = False,
) -> Decision:
    return Decision(
        state=state,
        delay=delay,
        reason=reason,
        pause=_pause(answer),
        failures=history.failures + counts,
        repeats=_repeats(answer, history) if repeats is None else repeats,
        other_secret=other_secret,
    )


# --- what the stages ask ----------------------------------------------------------------------------------


def _is_retryable(answer: Answer) -> bool:
    """Whether waiting may help: everything but a 4xx that speaks about the request."""
    status = answer.status
    return status is None or not 400 <= status <= 499 or status in RETRIED_4XX


def _pause(answer: Answer) -> float | None:
    """The endpoint asked for quiet, whatever becomes of this one delivery."""
    asked = answer.retry_after or 0.0
    if asked <= 0 or answer.outcome is Outcome.SUCCESS or not _is_retryable(answer):
        return None
    return min(asked, MAX_RETRY_AFTER)


def _repeats(answer: Answer, history: History) -> int:
    return history.repeats + 1 if answer.outcome is history.last_outcome else 1


def _is_over(window_end: float | None, now: float) -> bool:
    return window_end is not None and now >= window_end


def _jittered(delay: float, jitter: float) -> float:
    return delay * (1 + JITTER * jitter)


def _shrunk(remaining: Sequence[float], room: float) -> float:
    """The next delay, shortened in proportion so that all remaining ones fit into `room` seconds."""
    total = sum(remaining)
    return remaining[0] * min(1.0, room / total) if total > 0 else remaining[0]


# --- dates ------------------------------------------------------------------------------------------------

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = "|".join(_MONTHS)
_CLOCK = r"(?P<hour>\d{2}):(?P<minute>\d{2}):(?P<second>\d{2})"
#: the three forms of RFC 9110, section 5.6.7, case and all; strptime would follow the locale
_HTTP_DATES = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), "
        rf"(?P<day>\d{{2}}) (?P<month>{_MONTH}) (?P<year>\d{{4}}) {_CLOCK} GMT",
        rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, "
        rf"(?P<day>\d{{2}})-(?P<month>{_MONTH})-(?P<year>\d{{2}}) {_CLOCK} GMT",
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (?P<month>{_MONTH}) (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})",
    )
)


def _http_date(value: str, *, now: float) -> float | None:
    match = next(filter(None, (form.fullmatch(value) for form in _HTTP_DATES)), None)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        year = _full_year(year, datetime.fromtimestamp(now, UTC).year)
    second = int(match["second"])
    try:
        moment = datetime(
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            # a leap second is 60, which datetime does not know
            59 if second == 60 else second,
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return moment.timestamp()


def _full_year(two_digits: int, this_year: int) -> int:
    """The year meant by two digits: never more than 50 years ahead (RFC 9110, section 5.6.7)."""
    year = this_year - this_year % 100 + two_digits
    return year - 100 if year > this_year + 50 else year
